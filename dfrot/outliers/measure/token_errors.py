"""4-bit error token by token under no, orthogonal, Hadamard and refined rotation: the comparison that motivates DFRot.

Rows are RMSNorm outputs without their gain. The refinement is fitted on rows at even positions and everything is
measured at odd ones: with as many dimensions as rows, errors on fitted rows would be too small. Massive tokens are in
both sets: their rows are constants, and a text may hold a single one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dfrot.progress import Progress
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.rotation.hadamard import random_orthogonal, randomized_hadamard
from dfrot.rotation.refinement.calibration_rows import CalibrationRows, broadcast_rows, normalise
from dfrot.rotation.refinement.massive_rule import MassiveRule
from dfrot.rotation.refinement.massive_tokens import massive_mask
from dfrot.rotation.refinement.refine import refine
from dfrot.rotation.refinement.settings import RefineSettings
from dfrot.rotation.refinement.token_quantizer import TokenQuantizer

METHODS = ("none", "orthogonal", "hadamard", "refined")
CURVE_POINTS = 64  # of each sorted curve in the report


@dataclass
class RowStore:
    """Sampled rows of every norm within a budget: massive ones up to a limit, common ones evenly spaced."""

    rule: MassiveRule
    """Which tokens are massive."""
    eps: float
    """Of the norms."""
    quota: int
    """Common rows, and massive rows, kept per norm."""
    names: list[str] = field(default_factory=list)
    """Norms in the order they came."""
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    """Per norm and window: rows [n, d], weights [n], massive bool [n], index of the norm [n]."""
    total: int = 0
    """Rows offered, kept or not."""

    def add(self, norm: str, hidden: Tensor, windows: int) -> Tensor:
        """Sample one window of the stream [S, d] before `norm`; returns which tokens are massive, bool [S].

        windows: how many windows share the quota."""
        rows = normalise(hidden, self.eps)
        massive = massive_mask(rows, self.rule)
        if not self.names or self.names[-1] != norm:
            self.names.append(norm)
        quota = max(2, self.quota // windows)
        common = (~massive).nonzero().flatten()
        sample = common[torch.linspace(0, max(len(common) - 1, 0), min(quota, len(common))).long()]
        kept = torch.cat([massive.nonzero().flatten()[:quota], sample]).sort().values
        weight = torch.ones(len(massive))
        weight[sample] = len(common) / max(len(sample), 1)
        index = torch.full((len(kept),), len(self.names) - 1)
        self.parts.append((rows[kept], weight[kept], massive[kept], index))
        self.total += len(rows)
        return massive

    def features(self) -> CalibrationRows:
        """All kept rows, as the refinement takes them."""
        rows, weight, massive, tap = (torch.cat([part[i] for part in self.parts]) for i in range(4))
        zero = torch.zeros(len(rows), dtype=torch.long)
        return CalibrationRows(rows, weight, massive, tap, zero, zero, tuple(self.names), self.total, self.rule)


def split_fit_and_held_out(features: CalibrationRows) -> tuple[CalibrationRows, CalibrationRows]:
    """Rows to fit on and rows to measure on: common rows alternate, massive rows are in both."""
    even = torch.arange(len(features.rows)) % 2 == 0
    weight = torch.where(features.massive, features.weight, 2 * features.weight)
    halves = []
    for half in (even, ~even):
        keep = half | features.massive
        halves.append(
            CalibrationRows(
                features.rows[keep],
                weight[keep],
                features.massive[keep],
                features.tap[keep],
                features.position[keep],
                features.token[keep],
                features.taps,
                features.total,
                features.rule,
            )
        )
    return halves[0], halves[1]


def token_errors(
    store: RowStore, seed: int, rounds: int, bits: int, rotated: bool, progress: Progress, ranks: Ranks = SINGLE
) -> tuple[dict[str, Any], dict[str, Tensor | None]]:
    """Error / norm per token for every method, only `none` for a checkpoint that is `rotated` already.

    Returns the report (JSON: means over massive and common tokens, sorted curves, means per norm, statistics of the
    refinement) and the rotations by method (None: the basis as it is). seed: of the random rotations; rounds: of the
    refinement, whose products ranks share on the first one's rows."""
    fit, held_out = split_fit_and_held_out(broadcast_rows(store.features(), ranks))
    grid = TokenQuantizer(bits, False)
    matrices: dict[str, Tensor | None] = {"none": None}
    refinement: dict[str, Any] | None = None
    if not rotated:
        start = randomized_hadamard(fit.width, seed)
        how = RefineSettings(bits=bits, rounds=rounds, seed=seed)
        result = refine(fit, start, how, progress=progress, ranks=ranks)
        matrices |= {"orthogonal": random_orthogonal(fit.width, seed), "hadamard": start, "refined": result.matrix}
        refinement = result.stats
    norms = len(store.names)
    report = {
        "bits": bits,
        "massive_tokens": held_out.n_massive,
        "tokens": len(held_out.rows),
        "methods": {name: _method_errors(held_out, matrix, grid, norms) for name, matrix in matrices.items()},
        "norms": store.names,
        "refinement": refinement,
    }
    return report, matrices


def _method_errors(
    held_out: CalibrationRows, matrix: Tensor | None, grid: TokenQuantizer, norms: int
) -> dict[str, Any]:
    """The errors under one rotation; norms: their number."""
    weight, massive = held_out.weight, held_out.massive
    rows = held_out.rows if matrix is None else held_out.rows @ matrix.float()
    error = grid.error(rows).sqrt() / held_out.rows.double().norm(dim=1).clamp_min(1e-30)
    squares = error.square() * weight
    return {
        "massive": _weighted_mean(error, weight, massive),
        "common": _weighted_mean(error, weight, ~massive),
        "massive_share": float(squares[massive].sum() / squares.sum().clamp_min(1e-300)),
        "curves": {"massive": _sorted_curve(error[massive]), "common": _sorted_curve(error[~massive])},
        "by_norm": [_weighted_mean(error, weight, held_out.tap == i) for i in range(norms)],
    }


def _weighted_mean(error: Tensor, weight: Tensor, mask: Tensor) -> float | None:
    """Mean over the masked rows; None without any."""
    return float((error * weight)[mask].sum() / weight[mask].sum()) if bool(mask.any()) else None


def _sorted_curve(error: Tensor) -> list[float]:
    """Evenly spaced points of the sorted errors."""
    if not len(error):
        return []
    points = torch.linspace(0, len(error) - 1, min(CURVE_POINTS, len(error))).long()
    return [round(float(value), 6) for value in error.sort().values[points]]
