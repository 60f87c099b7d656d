"""Which weights create a massive activation, and whether it disappears without them.

An entry of the residual stream that becomes massive at a writer is a sum `sum_j W[c, j] x_j` (plus bias). Its largest
terms of the same sign are the candidates; for the MLP the factors of x_j = act(gate_j) up_j are reported too. The claim
is tested by ablation: a second stream runs beside the first with these weights (or embedding entries) set to zero,
through all later blocks, and the criterion is applied to it as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch, Linear
from dfrot.calib.taps import inner_linear
from dfrot.outliers.measure.block_view import BlockCapture
from dfrot.outliers.measure.criteria import Criteria, massive_entries
from dfrot.outliers.measure.massive import Trace

EXPLAINED = 0.9  # terms are collected until they make up this share of the value
MAX_TERMS = 8


def attribute_entry(
    capture: BlockCapture, block: nn.Module, arch: BoundArch, writer: Linear, trace: Trace
) -> dict[str, Any]:
    """The largest terms of an entry that became massive at `writer`, JSON: columns with weight, activation and their
    share of what the writer adds. capture: of the block and window in which it became massive."""
    _, position, channel = trace.entry
    module = inner_linear(block, writer.name)
    x = capture.taps[_tap_name(arch, writer)][position].float()
    weight = module.weight[channel].float()
    terms = weight * x
    total = float(terms.sum())
    order = torch.argsort(terms * (1.0 if total >= 0 else -1.0), descending=True)[:MAX_TERMS].tolist()
    weights, activations = weight.abs(), x.abs()
    chosen: list[dict[str, Any]] = []
    explained = 0.0
    for column in order:
        if explained >= EXPLAINED or (chosen and float(terms[column]) * total <= 0):
            break
        share = float(terms[column]) / total if total else 0.0
        explained += share
        chosen.append(
            {
                "column": column,
                "weight": float(weight[column]),
                "weight_over_median": float(weights[column] / weights.median().clamp_min(1e-30)),
                "activation": float(x[column]),
                "activation_over_median": float(activations[column] / activations.median().clamp_min(1e-30)),
                "share": share,
                **_gate_factors(capture, block, arch, writer, position, column),
            }
        )
    return {"channel": channel, "adds": total, "explained": explained, "terms": chosen}


def _tap_name(arch: BoundArch, linear: Linear) -> str:
    """The tap that a linear reads."""
    return next(tap.name for tap in arch.taps() if linear in tap.linears)


def _gate_factors(
    capture: BlockCapture, block: nn.Module, arch: BoundArch, writer: Linear, position: int, column: int
) -> dict[str, dict[str, float]]:
    """{"factors": outputs at `column` of the linears whose product an MLP writer reads}; empty for other writers."""
    factors = {}
    for linear in arch.spec.linears:
        feeds_writer = linear.writes == writer.reads and linear.writes == "mlp"
        if feeds_writer and hasattr(block.get_submodule(writer.name), "weight"):
            module = inner_linear(block, linear.name)
            x = capture.taps[_tap_name(arch, linear)][position].float()
            bias = 0.0 if module.bias is None else float(module.bias[column])
            factors[linear.name.rpartition(".")[2]] = float(module.weight[column].float() @ x) + bias
    return {"factors": factors} if factors else {}


@dataclass
class Ablation:
    """The second residual stream of one window, in which the sources of massive activations are set to zero."""

    criteria: Criteria
    """What counts as massive."""
    window: int = -1
    """The window that the stream belongs to; -1 before `start`."""
    hidden: Tensor | None = None
    """The stream [S, hidden]; None before `start`."""
    massive_left: dict[str, int] = field(default_factory=dict)
    """State -> massive entries that remain there."""
    removed: list[str] = field(default_factory=list)
    """What was set to zero, in words."""

    def start(self, window: int, hidden: Tensor) -> None:
        """Copy the stream of the first window that holds a massive activation, from before its creation."""
        if self.hidden is None:
            self.window, self.hidden = window, hidden.clone()

    def remove_embedding_entries(self, traces: list[Trace], name: str) -> None:
        """Set the traced entries of this window to zero; name: of the embedding."""
        if self.hidden is None:
            return
        entries = [trace.entry for trace in traces if trace.entry[0] == self.window]
        for _, position, channel in entries:
            self.hidden[position, channel] = 0.0
        if entries:
            self.removed.append(f"{name}: {len(entries)} entries")
            self.count_massive(name, self.hidden)

    def count_massive(self, name: str, hidden: Tensor) -> None:
        """Record how many entries of the state `name` are still massive."""
        self.massive_left[name] = len(massive_entries(hidden, self.criteria.limit(hidden)))


def zero_weights(block: nn.Module, places: dict[str, list[tuple[int, int]]]) -> None:
    """Set weights to zero in place: linear -> (row, column). The block is this run's own copy."""
    for name, entries in places.items():
        module = inner_linear(block, name)
        weight = module.weight.data.clone()
        for row, column in entries:
            weight[row, column] = 0.0
        module.weight.data = weight
