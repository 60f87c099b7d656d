"""The head that guesses are read from: of a draft in 4 bits a copy of the target's head in 4 bits.

A draft can only be trained through a head that is kept in 16 bits, which is then most of what a guess reads: at 8B and
128 thousand tokens 1 GB beside a draft of 0.35 GB. Guesses are verified, so rounding it costs acceptance at most.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dfrot.draft.models.base import Draft, Head
from dfrot.draft.schemes import SCHEMES
from dfrot.quant.linear import QuantLinear
from dfrot.quant.plan import LinearPlan
from dfrot.quant.rtn import quantize, row_tiles
from dfrot.quant.scheme import FULL

if TYPE_CHECKING:
    from dfrot.generation.target import Target


def proposal_head(target: Target, draft: Draft) -> Head:
    """Features [..., d] -> logits [..., V] that `draft` guesses from: its target's own head, unless the draft is in 4
    bits and a native kernel reads such a head. Made at the first call, kept by the target."""
    four = any(isinstance(module, QuantLinear) and module.plan.w_bits == 4 for module in draft.modules())
    if not four:
        return target.logits_rows
    if target.rounded_head is None:
        target.rounded_head = rounded(target.head_module)
    copy = target.rounded_head
    return target.logits_rows if copy.prepared is None else partial(_by, target, copy)


def _by(target: Target, copy: QuantLinear, features: Tensor) -> Tensor:
    return target.scale_logits(copy(features))


@torch.no_grad()
def rounded(head: nn.Module) -> QuantLinear:
    """A dense head in the scheme of 4-bit drafts (16-bit activations); `prepared` is None where no native kernel reads
    it, and an empty linear stands for any other kind of head."""
    if type(head) is not nn.Linear or head.bias is not None or head.weight.device.type != "cpu":
        return QuantLinear(LinearPlan("head", 0, 0, True, 4, 0, True, FULL, False, 1.0, None), False, torch.float32)
    (rows, columns), scheme = head.weight.shape, SCHEMES["w4"]
    group = scheme.w_group if columns % scheme.w_group == 0 else 0
    plan = LinearPlan("head", rows, columns, True, scheme.w_bits, group, True, FULL, False, 1.0, None)
    parts = [quantize(part, None, scheme).packed() for part in row_tiles(head.weight)]
    copy = QuantLinear(plan, False, torch.float32)
    stored = {"weight_packed": [part.packed for part in parts], "weight_scale": [part.scale for part in parts]}
    copy.load_state_dict({name: torch.cat(tensors) for name, tensors in stored.items()})
    copy.prepare("head")
    return copy
