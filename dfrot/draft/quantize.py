"""A smaller draft: its own linears rounded to 4 or 8 bits, activations left as they are.

A draft pass reads all of its weights for one row, so bytes are time; and since every guess is verified, rounding
costs acceptance at most, never a different text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dfrot.draft.models.base import Draft
from dfrot.draft.schemes import scheme_of
from dfrot.quant.linear import QuantLinear
from dfrot.quant.options import AlgorithmOptions
from dfrot.quant.plan import LinearPlan
from dfrot.quant.rtn import quantize
from dfrot.quant.scheme import FULL, QuantScheme

TRAINING_ONLY = ("mid_proj",)


def _plan(name: str, linear: nn.Linear, scheme: QuantScheme) -> LinearPlan:
    group = scheme.w_group if scheme.w_group and linear.in_features % scheme.w_group == 0 else 0
    rows, columns = linear.out_features, linear.in_features
    return LinearPlan(name, rows, columns, True, scheme.w_bits, group, True, FULL, False, 1.0, None)


def _linears(draft: Draft) -> list[tuple[str, nn.Linear]]:
    found = [(name, module) for name, module in draft.named_modules() if isinstance(module, nn.Linear)]
    return [(name, module) for name, module in found if name not in TRAINING_ONLY]


def empty_linears(draft: Draft, name: str) -> None:
    """Exchange the draft's linears for packed ones without content: what a stored quantized draft is loaded into."""
    for path, linear in _linears(draft):
        draft.set_submodule(path, QuantLinear(_plan(path, linear, scheme_of(name)), False, torch.float32))


def prepare_linears(draft: Draft) -> None:
    """After the weights are there: bring them into the layout of the kernels."""
    for path, module in draft.named_modules():
        if isinstance(module, QuantLinear):
            module.prepare(path)


@torch.no_grad()
def quantize_draft(draft: Draft, name: str) -> dict[str, Any]:
    """Round every linear of `draft` in place. Returns bytes before (bfloat16) and after, and the mean weight error."""
    scheme, errors = scheme_of(name), []
    before = 2 * draft.count()
    for path, linear in _linears(draft):
        plan = _plan(path, linear, scheme)
        whole = QuantScheme(plan.w_bits, FULL, FULL, plan.group)
        made = quantize(linear.weight, None, whole, AlgorithmOptions())
        packed, module = made.packed(), QuantLinear(plan, False, torch.float32)
        module.load_state_dict({"weight_packed": packed.packed, "weight_scale": packed.scale})
        draft.set_submodule(path, module)
        errors.append(float(made.stats["weight_error"]))
    after = sum(tensor.numel() * min(tensor.element_size(), 2) for tensor in draft.state_dict().values())
    prepare_linears(draft)
    return {"bytes_before": before, "bytes": after, "weight_error": sum(errors) / max(1, len(errors))}
