"""The head from whose logits draft tokens are chosen: for a 4-bit draft a 4-bit copy of the target's head.

A draft can only be trained through a head in 16 bits, which is then most of what proposing a token reads: with 8B
parameters and a vocabulary of 128 thousand, 1 GB beside a draft of 0.35 GB. Draft tokens are verified, so rounding the
copy costs acceptance at most.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from dfrot.draft.schemes import SCHEMES
from dfrot.generation.target import Target
from dfrot.quant.hessian_error import row_tiles
from dfrot.quant.linear import QuantLinear
from dfrot.quant.plan import LinearPlan
from dfrot.quant.rtn import quantize
from dfrot_kernels import native
from dfrot_kernels.whole_blocks.draft import dense, servable

COPY_SCHEME = "w4"


def proposal_head(target: Target, draft: nn.Module) -> Callable[[Tensor], Tensor]:
    """Features [..., d] -> logits [..., V] for choosing draft tokens: the target's own head, or its 4-bit copy if the
    draft has 4 bits and a native kernel reads such a head. The copy is made at the first call and kept by the target.
    """
    if not _four_bits(draft):
        return target.logits_rows
    if target.rounded_head is None:
        target.rounded_head = rounded(target.head_module)
    copy = target.rounded_head
    return target.logits_rows if copy.prepared is None else partial(_logits, target, copy)


def _four_bits(draft: nn.Module) -> bool:
    return any(isinstance(module, QuantLinear) and module.plan.w_bits == 4 for module in draft.modules())


@torch.no_grad()
def trimmed_head(target: Target, draft: nn.Module, ids: Tensor) -> Callable[[Tensor], Tensor]:
    """Features [k, d] -> logits [k, N] of the tokens `ids` int64 [N] (FR-Spec, arXiv 2502.14856): a head of these rows
    alone, in the target's 16 bits, or in 4 bits for a draft in 4 bits. Rows of a head that is stored as integers, or
    that has a bias, are computed with all the others."""
    head = target.head_module
    if type(head) is not nn.Linear or head.bias is not None:
        return lambda features: target.logits_rows(features)[..., ids]
    rows = nn.Linear(head.in_features, len(ids), bias=False, device="meta")
    rows.weight = nn.Parameter(head.weight[ids], requires_grad=False)
    if _four_bits(draft) and (copy := rounded(rows)).prepared is not None:
        return partial(_logits, target, copy)
    return partial(_dense_logits, target, rows.weight)


def trimmed_training_head(target: Target, ids: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Features [..., d] -> logits [..., N] of the tokens `ids`, differentiable: their rows of the head alone. None for
    a head that is more than a dense matrix."""
    head = target.head_module
    if type(head) is not nn.Linear or head.bias is not None:
        return None
    weight = head.weight.detach()[ids]
    return lambda features: target.scale_logits(nn.functional.linear(features.to(weight.dtype), weight))


def _dense_logits(target: Target, weight: Tensor, features: Tensor) -> Tensor:
    features = features.to(weight.dtype)
    if native.active() and servable(weight):
        return target.scale_logits(dense(features, weight))
    return target.scale_logits(features @ weight.T)


def _logits(target: Target, copy: QuantLinear, features: Tensor) -> Tensor:
    return target.scale_logits(copy(features))


@torch.no_grad()
def rounded(head: nn.Module) -> QuantLinear:
    """A 4-bit copy of a dense head. Its `prepared` is None where no native kernel reads it; for any other kind of head
    an empty linear is returned."""
    if type(head) is not nn.Linear or head.bias is not None or head.weight.device.type != "cpu":
        return QuantLinear(LinearPlan("head", 0, 0, True, 4, 0, True), False, torch.float32)
    (rows, columns), scheme = head.weight.shape, SCHEMES[COPY_SCHEME]
    group = scheme.w_group if columns % scheme.w_group == 0 else 0
    plan = LinearPlan("head", rows, columns, True, scheme.w_bits, group, True)
    parts = [quantize(part, None, scheme).packed() for part in row_tiles(head.weight)]
    copy = QuantLinear(plan, False, torch.float32)
    stored = {"weight_packed": [part.packed for part in parts], "weight_scale": [part.scale for part in parts]}
    copy.load_state_dict({name: torch.cat(tensors) for name, tensors in stored.items()})
    copy.prepare("head")
    return copy
