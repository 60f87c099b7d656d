"""Statistics of one tap, collected from chunks of activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dfrot.calib.hessian import HessianSum
from dfrot.calib.stats import BINS, BINS_PER_OCTAVE, CLIP_BITS, CLIP_RATIOS, LOWEST, CalibStats
from dfrot.quant.activations import fake_quantize

SAMPLE_ROWS = 256
EXPERT_ROWS = 32  # a mixture has a hundred times as many taps, each of them with a sample


def sampling_ranks(total: int, seed: int) -> Tensor:
    """int64 [total]: the order in which rows are taken into a sample, a seeded permutation."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(order).scatter_(0, order, torch.arange(total))


class StatsCollector:
    """Builds the CalibStats of one tap from chunks of rows.

    Args:
        width: K of the rows.
        rank: int64 [total] of `sampling_ranks`; of all rows that arrive, the `size` with the lowest ranks are the
            sample.
        hessian: whether to collect the Hessian.
        size: rows in the sample.
    """

    def __init__(self, width: int, rank: Tensor, hessian: bool = True, size: int = SAMPLE_ROWS) -> None:
        self.rank, self.size = rank, size
        self.hessian = HessianSum(width) if hessian else None
        self.absmax = torch.zeros(width)
        self.count = 0
        self.sample = torch.empty(0, width)
        self.sample_ranks = torch.empty(0, dtype=torch.long)

    def add(self, x: Tensor, index: Tensor | slice | None = None) -> None:
        """x [..., K]: the next rows, in order. index: their row numbers, where some rows are left out."""
        rows = x.reshape(-1, x.shape[-1]).float()
        if self.hessian is not None:
            self.hessian.add(rows)
        self.absmax = torch.maximum(self.absmax, rows.abs().amax(0))
        rank = self.rank[self.count : self.count + len(rows)] if index is None else self.rank[index]
        self.count += len(rows)
        limit = self.sample_ranks.max() if len(self.sample_ranks) == self.size else len(self.rank)
        chosen = (rank < limit).nonzero().flatten()
        chosen = chosen[rank[chosen].argsort()[: self.size]].sort().values
        self._sample(torch.cat([self.sample, rows[chosen]]), torch.cat([self.sample_ranks, rank[chosen]]))

    def _sample(self, rows: Tensor, ranks: Tensor) -> None:
        """Keep the rows with the lowest ranks, in their order."""
        if len(ranks) > self.size:
            kept = ranks.argsort()[: self.size].sort().values
            rows, ranks = rows[kept], ranks[kept]
        self.sample, self.sample_ranks = rows, ranks

    def part(self) -> dict[str, Any]:
        """What was collected, but for the Hessian: for `merge`."""
        return {"count": self.count, "absmax": self.absmax, "sample": self.sample, "ranks": self.sample_ranks}

    def merge(self, parts: Sequence[dict[str, Any]]) -> None:
        """Take over what several collectors have, each of other rows: as if this one had seen all rows, in order."""
        self.count = sum(part["count"] for part in parts)
        self.absmax = torch.stack([part["absmax"] for part in parts]).amax(0)
        ranks = torch.cat([part["ranks"] for part in parts])
        positions = torch.empty_like(self.rank).scatter_(0, self.rank, torch.arange(len(self.rank)))
        order = positions[ranks].argsort()
        self._sample(torch.cat([part["sample"] for part in parts])[order], ranks[order])

    def stats(self) -> CalibStats:
        """The statistics of all rows so far."""
        sample = self.sample
        squares = sample.double().square()
        energy = squares.sum(1)
        kurtosis = squares.square().sum(1) * sample.shape[1] / energy.square().clamp(min=1e-300)
        bins = ((sample.abs().clamp(min=1e-30).log2() - LOWEST) * BINS_PER_OCTAVE).floor().long()
        return CalibStats(
            count=self.count,
            hessian=self.hessian.value() if self.hessian is not None else None,
            absmax=self.absmax,
            histogram=torch.bincount(bins.clamp(0, BINS - 1).flatten(), minlength=BINS),
            clip_error=_clip_errors(sample),
            moments=torch.stack([torch.tensor(float(len(sample)), dtype=torch.float64), kurtosis.sum()]),
        )


def _clip_errors(rows: Tensor) -> Tensor:
    """Summed squared error of per-token quantization of rows [M, K], float64 [bits, sym/asym, ratio]."""
    out = torch.zeros(len(CLIP_BITS), 2, len(CLIP_RATIOS), dtype=torch.float64)
    for i, bits in enumerate(CLIP_BITS):
        for j, symmetric in enumerate((True, False)):
            for k, clip in enumerate(CLIP_RATIOS):
                error = fake_quantize(rows, bits, symmetric, clip).sub_(rows)
                out[i, j, k] = error.square_().sum(dtype=torch.float64)
    return out
