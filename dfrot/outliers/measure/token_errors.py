"""4-bit error token by token under no, orthogonal, Hadamard and refined rotation: the figure that motivates DFRot.

Rows are RMSNorm outputs without their gain. The refinement is fitted on tokens at even positions and everything is
measured at odd ones: with as many dimensions as rows, errors on fitted rows would flatter it. Massive tokens are on
both sides: they are constants (that is what they are for), and a text may hold a single one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dfrot.rotation.hadamard import random_orthogonal, randomized
from dfrot.rotation.refinement.features import CalibrationRows, normalise
from dfrot.rotation.refinement.massive_tokens import MassiveRule
from dfrot.rotation.refinement.refine import RefineSettings, refine
from dfrot.rotation.refinement.row_grid import RowGrid
from dfrot.stage_folder import Progress

METHODS = ("none", "orthogonal", "hadamard", "refined")
POINTS = 64  # of each sorted curve in the report


@dataclass
class RowStore:
    """Sampled rows of every norm within a budget: all massive ones (to a limit), common ones evenly spaced."""

    rule: MassiveRule
    eps: float
    quota: int
    names: list[str] = field(default_factory=list)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    seen: int = 0

    def add(self, tap: str, hidden: Tensor, tokens: Tensor, windows: int) -> Tensor:
        """One window [S, d] of the stream before norm `tap`; returns which tokens are massive, bool [S]."""
        rows = normalise(hidden, self.eps)
        massive = self.rule.mask(rows)
        if not self.names or self.names[-1] != tap:
            self.names.append(tap)
        quota = max(2, self.quota // windows)
        common = (~massive).nonzero().flatten()
        picked = common[torch.linspace(0, max(len(common) - 1, 0), min(quota, len(common))).long()]
        heavy = massive.nonzero().flatten()[:quota]
        where = torch.cat([heavy, picked]).sort().values
        weight = torch.ones(len(massive))
        weight[picked] = len(common) / max(len(picked), 1)
        self.parts.append((rows[where], weight[where], massive[where], torch.full((len(where),), len(self.names) - 1)))
        self.seen += len(rows)
        return massive

    def features(self) -> CalibrationRows:
        """All of it as the refinement takes it."""
        rows, weight, massive, tap = (torch.cat([part[i] for part in self.parts]) for i in range(4))
        zero = torch.zeros(len(rows), dtype=torch.long)
        return CalibrationRows(rows, weight, massive, tap, zero, zero, tuple(self.names), self.seen, self.rule)


def split_fit_and_held_out(features: CalibrationRows) -> tuple[CalibrationRows, CalibrationRows]:
    """To fit, to measure: common rows alternate, massive rows are in both."""
    order = torch.arange(len(features.rows)) % 2 == 0
    halves = []
    for half in (order, ~order):
        keep = half | features.massive
        weight = torch.where(features.massive, features.weight, 2 * features.weight)
        f = features
        parts = f.rows[keep], weight[keep], f.massive[keep], f.tap[keep], f.position[keep], f.token[keep]
        halves.append(CalibrationRows(*parts, f.taps, f.total, f.rule))
    return halves[0], halves[1]


def token_errors(
    store: RowStore, seed: int, rounds: int, bits: int, rotated: bool, progress: Progress
) -> tuple[dict[str, Any], dict[str, Tensor | None]]:
    """error / norm per token for every method (only `none` for a checkpoint that is rotated already).

    Returns means over massive and common tokens, sorted curves, means per norm and what the refinement reports; and
    the rotations by method (None: the basis as it is)."""
    fit, held = split_fit_and_held_out(store.features())
    width = fit.width
    grid = RowGrid(bits, False)
    matrices: dict[str, Tensor | None] = {"none": None}
    refinement: dict[str, Any] | None = None
    if not rotated:
        start = randomized(width, seed)
        result = refine(fit, start, RefineSettings(bits=bits, rounds=rounds, seed=seed), progress=progress)
        matrices |= {"orthogonal": random_orthogonal(width, seed), "hadamard": start, "refined": result.matrix}
        refinement = result.stats
    norm = held.rows.double().norm(dim=1).clamp_min(1e-30)
    report: dict[str, Any] = {"bits": bits, "massive_tokens": held.n_massive, "tokens": len(held.rows), "methods": {}}
    for name, matrix in matrices.items():
        rows = held.rows if matrix is None else held.rows @ matrix.float()
        error = grid.error(rows).sqrt() / norm
        squares = error.square() * held.weight
        report["methods"][name] = {
            "massive": _mean(error, held.weight, held.massive),
            "common": _mean(error, held.weight, ~held.massive),
            "massive_share": float(squares[held.massive].sum() / squares.sum().clamp_min(1e-300)),
            "curves": {"massive": _curve(error[held.massive]), "common": _curve(error[~held.massive])},
            "by_norm": [_mean(error, held.weight, held.tap == i) for i in range(len(store.names))],
        }
    report["norms"] = store.names
    report["refinement"] = refinement
    return report, matrices


def _mean(error: Tensor, weight: Tensor, part: Tensor) -> float | None:
    return float((error * weight)[part].sum() / weight[part].sum()) if bool(part.any()) else None


def _curve(error: Tensor) -> list[float]:
    if not len(error):
        return []
    at = torch.linspace(0, len(error) - 1, min(POINTS, len(error))).long()
    return [round(float(v), 6) for v in error.sort().values[at]]
