"""Quantizing a draft: its own linears in 4 or 8 bits, a head in bits of its own, activations unchanged.

A draft pass reads all of its weights for one row, so bytes are time. Every draft token is verified, so quantization
costs acceptance at most, never a different text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dfrot.draft.schemes import scheme_of
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.plan import LinearPlan
from dfrot.quant.rounding.options import AlgorithmOptions
from dfrot.quant.rounding.rtn import quantize
from dfrot.quant.scheme import FULL, QuantScheme

TRAINING_ONLY = ("mid_proj",)  # linears that decoding does not use
HEAD = "lm_head"
BFLOAT16_BYTES = 2


def _plan(name: str, linear: nn.Linear, scheme: QuantScheme) -> LinearPlan:
    group = scheme.w_group if scheme.w_group and linear.in_features % scheme.w_group == 0 else 0
    rows, columns = linear.out_features, linear.in_features
    return LinearPlan(name, rows, columns, True, scheme.w_bits, group, True)


def _linears(draft: nn.Module) -> list[tuple[str, nn.Linear]]:
    linears = [(name, module) for name, module in draft.named_modules() if isinstance(module, nn.Linear)]
    return [(name, linear) for name, linear in linears if name not in TRAINING_ONLY]


def empty_linears(draft: nn.Module, scheme: str, head: str = "") -> None:
    """Replace the draft's linears by packed ones without content, into which a stored quantized draft is loaded.
    scheme, head: see `quantize_draft`."""
    for name, linear in _linears(draft):
        parsed = scheme_of(head if head and name == HEAD else scheme)
        draft.set_submodule(name, QuantLinear(_plan(name, linear, parsed), False, torch.float32))


def prepare_linears(draft: nn.Module) -> None:
    """Bring loaded packed weights into the layout of the kernels."""
    for name, module in draft.named_modules():
        if isinstance(module, QuantLinear):
            module.prepare(name)


@torch.no_grad()
def quantize_draft(draft: nn.Module, scheme: str, head: str = "") -> dict[str, Any]:
    """Round every linear of `draft` to nearest, in place. scheme: `w4` or `w8`. head: that of a head of its own, if
    another.

    Returns JSON: bytes before (in bfloat16) and after, and the mean weight error."""
    errors = []
    before = BFLOAT16_BYTES * sum(parameter.numel() for parameter in draft.parameters())
    for name, linear in _linears(draft):
        plan = _plan(name, linear, scheme_of(head if head and name == HEAD else scheme))
        result = quantize(linear.weight, None, QuantScheme(plan.w_bits, FULL, FULL, plan.group), AlgorithmOptions())
        packed, module = result.packed(), QuantLinear(plan, False, torch.float32)
        module.load_state_dict({"weight_packed": packed.packed, "weight_scale": packed.scale})
        draft.set_submodule(name, module)
        errors.append(float(result.stats["weight_error"]))
    # what stays in floating point is stored in bfloat16
    after = sum(t.numel() * min(t.element_size(), BFLOAT16_BYTES) for t in draft.state_dict().values())
    prepare_linears(draft)
    return {"bytes_before": before, "bytes": after, "weight_error": sum(errors) / max(1, len(errors))}
