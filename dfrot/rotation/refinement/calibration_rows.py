"""Calibration rows of the refinement: weighted outputs of RMSNorms that feed linears, without their gains.

The gain is fused into the linears before a rotation, so what R1 rotates is x / rms(x). Every massive row is kept;
common rows are a seeded sample per norm, of weight 1 / p where p is the share that was kept, so that weighted sums
over the rows are unbiased estimates of sums over all tokens (DFRot, section 3.3; which norms: its public code).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfrot.ranks.single import Ranks
from dfrot.rotation.refinement.massive_rule import MassiveRule
from dfrot.rotation.refinement.massive_tokens import massive_mask


@dataclass(frozen=True)
class CalibrationRows:
    """Weighted rows, ordered by tap, then by position. A tap is a norm whose output is sampled."""

    rows: Tensor
    """float32 [n, d] of norm about sqrt(d)."""
    weight: Tensor
    """float32 [n]: how many tokens a row stands for; 1 for massive rows."""
    massive: Tensor
    """bool [n]: rows of massive tokens."""
    tap: Tensor
    """int64 [n]: index into `taps`."""
    position: Tensor
    """int64 [n]: position in the calibration sample."""
    token: Tensor
    """int64 [n]: token id."""
    taps: tuple[str, ...]
    """Full names of the norms."""
    total: int
    """Rows that were observed, kept or not."""
    rule: MassiveRule = field(default_factory=MassiveRule)
    """The rule behind `massive`."""

    @property
    def width(self) -> int:
        """Width d of a row."""
        return self.rows.shape[1]

    @property
    def n_massive(self) -> int:
        """Number of massive rows."""
        return int(self.massive.sum())

    def report(self, decode: Callable[[int], str] | None = None) -> dict[str, Any]:
        """What the rule marked, as JSON: counts, the massive positions per tap, and the massive tokens.

        decode: token id -> text; adds the text of each token."""
        index = self.massive.nonzero().flatten()
        ids, counts = torch.unique(self.token[index], return_counts=True)
        order = sorted(range(len(ids)), key=lambda i: (-int(counts[i]), int(ids[i])))
        tokens = [
            {"id": int(ids[i]), "count": int(counts[i])} | ({"text": decode(int(ids[i]))} if decode else {})
            for i in order
        ]
        per_tap = {
            name: self.position[index[self.tap[index] == number]].tolist()
            for number, name in enumerate(self.taps)
            if bool((self.tap[index] == number).any())
        }
        return {
            "rule": f"{self.rule.name}:{self.rule.threshold:.6g}",
            "rows": self.total,
            "kept": len(self.rows),
            "massive": len(index),
            "share": len(index) / max(self.total, 1),
            "positions": sorted({int(position) for position in self.position[index]}),
            "tokens": tokens,
            "taps": per_tap,
        }


def broadcast_rows(rows: CalibrationRows | None, ranks: Ranks) -> CalibrationRows:
    """The first rank's rows, on every rank; what the others give is ignored."""
    own = rows if ranks.first else None
    values = ranks.broadcast(None if own is None else {**vars(own), "rule": vars(own.rule)})
    if own is not None:
        return own
    return CalibrationRows(**{**values, "taps": tuple(values["taps"]), "rule": MassiveRule(**values["rule"])})


def unit_weight_rows(rows: Tensor, rule: MassiveRule | None = None, massive: Tensor | None = None) -> CalibrationRows:
    """Calibration rows made of `rows` [n, d], each of weight 1. `massive` bool [n] overrides the mask of `rule`."""
    rule = rule or MassiveRule()
    rows = rows.float()
    count = len(rows)
    index = torch.arange(count)
    zeros = torch.zeros(count, dtype=torch.long)
    mask = massive_mask(rows, rule) if massive is None else massive
    return CalibrationRows(rows, torch.ones(count), mask, zeros, index, zeros, ("rows",), count, rule)


def normalise(hidden: Tensor, eps: float) -> Tensor:
    """RMSNorm without gain of hidden [..., d], float32: x / sqrt(mean(x^2) + eps)."""
    hidden = hidden.float()
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps)


def sample_positions(massive: Tensor, quota: int, seed: int, tap: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows of one tap to keep: every massive one and at most `quota` common ones, in order.

    massive: bool [S]. The draw depends on `seed` and the index `tap`. Returns weight float32 [k], massive bool [k] and
    position int64 [k] of the rows to keep."""
    common = (~massive).nonzero().flatten()
    chosen = common
    if len(common) > quota:
        generator = np.random.Generator(np.random.PCG64([seed, tap]))
        drawn = np.sort(generator.permutation(len(common))[:quota])
        chosen = common[torch.from_numpy(drawn)]
    position = torch.cat([massive.nonzero().flatten(), chosen]).sort().values
    weight = torch.ones(len(massive))
    if len(chosen):
        weight[chosen] = len(common) / len(chosen)
    return weight[position], massive[position], position
