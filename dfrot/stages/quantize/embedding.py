"""Rounding the embedding to its grid, a block of rows at a time.

Its rows are inputs, not outputs: no activation multiplies them, so there is no Hessian, and every row is rounded to the
nearest points of its grid. Where errors propagate, blocks then see the rounded rows and take their share back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint_writer import SafetensorsWriter
from dfrot.quant.plan import LinearPlan
from dfrot.quant.rounding import rtn
from dfrot.quant.rounding.hessian_error import fraction
from dfrot.quant.rounding.options import AlgorithmOptions
from dfrot.quant.scheme import FULL, QuantScheme
from dfrot.stages.quantize.layout import CheckpointLayout

ROWS = 8192  # of the table in memory at a time


@dataclass(frozen=True)
class RoundedRows:
    """Rows of the rounded table that some tokens need."""

    ids: Tensor
    """int64 [n], ascending."""
    values: Tensor
    """float32 [n, hidden]."""

    def embed(self, tokens: Tensor, factor: float) -> Tensor:
        """tokens int64 [B, S], all among `ids` -> hidden float32 [B, S, hidden], times the architecture's constant."""
        hidden = self.values[torch.searchsorted(self.ids, tokens)]
        return hidden if factor == 1 else hidden * factor


def grid_scheme(plan: LinearPlan, scheme: QuantScheme) -> QuantScheme:
    """The scheme whose weights lie on the grid of `plan`; the rest is that of `scheme`."""
    if plan.number_format == scheme.number_format:
        return replace(scheme, w_bits=plan.w_bits, w_group=plan.group, w_sym=plan.w_sym)
    return QuantScheme(plan.w_bits, FULL, scheme.kv_bits, plan.group, plan.w_sym)


def quantize_embedding(
    layout: CheckpointLayout, writer: SafetensorsWriter, options: AlgorithmOptions, ids: Tensor
) -> tuple[dict[str, Any], RoundedRows]:
    """Write the rounded embedding. ids: int64 [n], ascending, rows to return. Returns statistics, as those of a linear,
    and the rows."""
    name = layout.arch.spec.embed
    scheme = grid_scheme(layout.quantized[name], layout.scheme)
    error = energy = 0.0
    wanted: list[Tensor] = []
    for begin in range(0, layout.arch.vocab_size, ROWS):
        weight = layout.checkpoint.read_rows(f"{name}.weight", begin, begin + ROWS).float()
        result = rtn.quantize(weight, None, scheme, options)
        layout.write_rows(writer, name, begin, result)
        rounded = result.dequantize()
        error += float((weight - rounded).square().sum(dtype=torch.float64))
        energy += float(weight.square().sum(dtype=torch.float64))
        wanted.append(rounded[ids[(ids >= begin) & (ids < begin + ROWS)] - begin])
    stats = {"algorithm": "rtn", "weight_error": fraction(error, energy)}
    return stats, RoundedRows(ids, torch.cat(wanted))
