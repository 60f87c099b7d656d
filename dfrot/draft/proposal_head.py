"""The head from whose logits draft tokens are chosen: for a 4-bit draft a copy of the target's head in 4 or 8 bits.

A draft can only be trained through a head in 16 bits, which is then most of what proposing a token reads: with 8B
parameters and a vocabulary of 128 thousand, 1 GB beside a draft of 0.35 GB. Draft tokens are verified, so rounding the
copy costs acceptance at most.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from dfrot.draft.schemes import scheme_of
from dfrot.generation.target import Target
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.plan import LinearPlan
from dfrot.quant.rounding.hessian_error import row_tiles
from dfrot.quant.rounding.rtn import quantize
from dfrot.quant.scheme import FULL, QuantScheme
from dfrot_kernels import native
from dfrot_kernels.whole_blocks.draft import dense, servable


def proposal_head(target: Target, draft: nn.Module) -> Callable[[Tensor], Tensor]:
    """Features [..., d] -> logits [..., V] for choosing draft tokens: the target's own head, or its rounded copy if the
    draft has 4 bits and a native kernel reads such a head. The copy is made at the first call and kept by the target.
    """
    scheme = _copy_scheme(draft)
    if scheme is None:
        return target.logits_rows
    if scheme not in target.rounded_heads:
        target.rounded_heads[scheme] = rounded(target.head_module, scheme)
    copy = target.rounded_heads[scheme]
    return target.logits_rows if copy is None else partial(_logits, target, copy)


def _copy_scheme(draft: nn.Module) -> str | None:
    """How a draft reads its target's head: `w4` or `w8`, or None for as it is."""
    if not any(isinstance(module, QuantLinear) and module.plan.w_bits == 4 for module in draft.modules()):
        return None
    return getattr(getattr(draft, "config", None), "quantized_head", "") or "w4"


@torch.no_grad()
def trimmed_head(target: Target, draft: nn.Module, ids: Tensor) -> Callable[[Tensor], Tensor]:
    """Features [k, d] -> logits [k, N] of the tokens `ids` int64 [N] (FR-Spec, arXiv 2502.14856): a head of these rows
    alone, in the target's 16 bits, or for a draft in 4 bits in 4 or 8, as its config says. Rows of a head that is
    stored as integers, or that has a bias, are computed with all the others."""
    head = target.head_module
    if type(head) is not nn.Linear or head.bias is not None:
        return lambda features: target.logits_rows(features)[..., ids]
    rows = nn.Linear(head.in_features, len(ids), bias=False, device="meta")
    rows.weight = nn.Parameter(head.weight[ids], requires_grad=False)
    scheme = _copy_scheme(draft)
    if scheme is not None and (copy := rounded(rows, scheme)) is not None:
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
def rounded(head: nn.Module, name: str) -> QuantLinear | None:
    """A copy of a dense head in a scheme of `schemes.SCHEMES`; None where no native kernel reads such a copy, and for
    any other kind of head."""
    if type(head) is not nn.Linear or head.bias is not None or head.weight.device.type != "cpu":
        return None
    (rows, columns), scheme = head.weight.shape, scheme_of(name)
    group = scheme.w_group if scheme.w_group and columns % scheme.w_group == 0 else 0
    plan = LinearPlan("head", rows, columns, True, scheme.w_bits, group, True)
    rounding = QuantScheme(scheme.w_bits, FULL, FULL, group)
    parts = [quantize(part, None, rounding).packed() for part in row_tiles(head.weight)]
    copy = QuantLinear(plan, False, torch.float32)
    stored = {"weight_packed": [part.packed for part in parts], "weight_scale": [part.scale for part in parts]}
    copy.load_state_dict({name: torch.cat(tensors) for name, tensors in stored.items()})
    copy.prepare("head")
    read = copy.prepared is not None or (native.active() and servable(copy.stored_weight()))
    return copy if read else None
