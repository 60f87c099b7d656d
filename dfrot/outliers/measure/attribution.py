"""Which weights create a massive activation, and whether it stays away without them.

An entry of the stream that jumps at a writer is a sum `sum_j W[c, j] x_j` (plus bias): its largest terms of the right
sign are the candidates, and for the MLP the factors of x_j = act(gate_j) up_j are told too. The claim is tested by
ablation: a second stream runs beside the first with these weights (or these embedding entries) set to zero, through
all later blocks, and the criterion is applied to it as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch, Linear
from dfrot.calib.observe import linear_of
from dfrot.outliers.measure.block_view import BlockCapture
from dfrot.outliers.measure.criteria import Criteria, massive_entries
from dfrot.outliers.measure.massive import Trace

EXPLAINED = 0.9  # terms are collected until they make up this share of the value
TERMS = 8  # at most


def attribute_entry(
    view: BlockCapture, block: nn.Module, arch: BoundArch, writer: Linear, trace: Trace
) -> dict[str, Any]:
    """The terms of one entry born at `writer`: columns with weight, activation and share of what the writer adds."""
    _, position, channel = trace.entry
    module = linear_of(block, writer.name)
    x = view.taps[_tap_of(arch, writer)][position].float()
    weight = module.weight[channel].float()
    terms = weight * x
    total = float(terms.sum())
    order = torch.argsort(terms * (1.0 if total >= 0 else -1.0), descending=True)[:TERMS].tolist()
    chosen: list[dict[str, Any]] = []
    share = 0.0
    for column in order:
        if share >= EXPLAINED or (chosen and float(terms[column]) * total <= 0):
            break
        part = float(terms[column]) / total if total else 0.0
        share += part
        size = x.abs()
        chosen.append(
            {
                "column": column,
                "weight": float(weight[column]),
                "weight_over_median": float(weight[column].abs() / weight.abs().median().clamp_min(1e-30)),
                "activation": float(x[column]),
                "activation_over_median": float(size[column] / size.median().clamp_min(1e-30)),
                "share": part,
                **_factors(view, block, arch, writer, position, column),
            }
        )
    return {"channel": channel, "adds": total, "explained": share, "terms": chosen}


def _tap_of(arch: BoundArch, linear: Linear) -> str:
    return next(tap.name for tap in arch.taps() if linear in tap.linears)


def _factors(
    view: BlockCapture, block: nn.Module, arch: BoundArch, writer: Linear, position: int, column: int
) -> dict[str, dict[str, float]]:
    """What the linears that feed an MLP column say there: the two factors of the gated product."""
    found = {}
    for linear in arch.spec.linears:
        if (
            linear.writes == writer.reads
            and linear.writes == "mlp"
            and hasattr(block.get_submodule(writer.name), "weight")
        ):
            module = linear_of(block, linear.name)
            x = view.taps[_tap_of(arch, linear)][position].float()
            bias = 0.0 if module.bias is None else float(module.bias[column])
            found[linear.name.rpartition(".")[2]] = float(module.weight[column].float() @ x) + bias
    return {"factors": found} if found else {}


@dataclass
class Ablation:
    """The second stream: `hidden` [S, hidden] of one window, in which what was found is switched off."""

    criteria: Criteria
    window: int = -1
    hidden: Tensor | None = None
    left: dict[str, int] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)

    def start(self, window: int, hidden: Tensor) -> None:
        """Take a copy of the first window that holds a massive activation, as it is before its creation."""
        if self.hidden is None:
            self.window, self.hidden = window, hidden.clone()

    def embedding(self, traces: list[Trace], name: str) -> None:
        """Switch off entries that the embedding brings."""
        if self.hidden is None:
            return
        mine = [trace.entry for trace in traces if trace.entry[0] == self.window]
        for _, position, channel in mine:
            self.hidden[position, channel] = 0.0
        if mine:
            self.removed.append(f"{name}: {len(mine)} entries")
            self.note(name, self.hidden)

    def note(self, name: str, hidden: Tensor) -> None:
        """How many entries of this state are massive without what was removed."""
        self.left[name] = len(massive_entries(hidden, self.criteria.limit(hidden)))


def zero_weights(block: nn.Module, cuts: dict[str, list[tuple[int, int]]]) -> None:
    """Set weights (row, column) of writers to zero, in place: the block is this run's own copy."""
    for name, places in cuts.items():
        module = linear_of(block, name)
        weight = module.weight.data.clone()
        for row, column in places:
            weight[row, column] = 0.0
        module.weight.data = weight
