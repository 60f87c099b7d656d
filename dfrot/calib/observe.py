"""Collecting statistics while a block runs: hooks on the linears of each tap, one block in memory.

A tap is observed behind everything that happens to its input (the online R4, activation quantizers that were
attached before), that is, exactly where the weight is multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch, Tap
from dfrot.calib.stats import BINS, BINS_PER_OCTAVE, CLIP_BITS, CLIP_RATIOS, LOWEST, CalibStats
from dfrot.quant.activations import fake_quantize
from dfrot.runtime.block_runner import OnlineHadamard
from dfrot.runtime.experts import find_experts

SAMPLE_ROWS = 256
EXPERT_ROWS = 32  # a mixture has a hundred times as many taps, each of them with a sample
CHUNK_BYTES = 1 << 30  # activations of one block that may be alive at once


def inner_linear(block: nn.Module, name: str) -> nn.Linear:
    """The linear itself, behind an online rotation if there is one."""
    module = block.get_submodule(name)
    return module.linear if isinstance(module, OnlineHadamard) else module  # type: ignore[return-value]


def samples_per_chunk(arch: BoundArch, seqlen: int) -> int:
    """How many samples may go through a block together: decided by shapes only, so that results repeat."""
    sizes = arch.sizes
    per_token = 4 * (6 * sizes["hidden"] + 2 * (sizes["q"] + 2 * sizes["kv"]) + 4 * sizes["intermediate"])
    return max(1, CHUNK_BYTES // (per_token * seqlen))


class HessianSum:
    """`(2 / n) sum x^T x`: float32 products, float64 sum, of the upper block triangle only (the rest is its mirror
    image, and these products are most of what calibration costs)."""

    def __init__(self, width: int | None = None) -> None:
        self.count = 0
        self.total = None if width is None else torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """rows float32 [M, K]."""
        width = rows.shape[1]
        if self.total is None:
            self.total = torch.zeros(width, width, dtype=torch.float64)
        step = max(256, width // 8)
        for begin in range(0, width, step):
            self.total[begin : begin + step, begin:] += rows[:, begin : begin + step].T @ rows[:, begin:]
        self.count += len(rows)

    def value(self) -> Tensor:
        """float32 [K, K], exactly symmetric; zeros when nothing was added."""
        assert self.total is not None
        upper = (self.total * (2 / max(self.count, 1))).float()
        return upper.triu_().add_(upper.triu(1).T)


def sampling_ranks(total: int, seed: int) -> Tensor:
    """int64 [total]: in which order rows are taken into a sample."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(order).scatter_(0, order, torch.arange(total))


class StatsCollector:
    """Builds the CalibStats of one tap from chunks of rows. rank: see `sampling_ranks`; of all rows that come, the
    `size` with the lowest ranks are the sample."""

    def __init__(self, width: int, rank: Tensor, hessian: bool = True, size: int = SAMPLE_ROWS) -> None:
        self.rank, self.size = rank, size
        self.hessian = HessianSum(width) if hessian else None
        self.absmax = torch.zeros(width)
        self.count = 0
        self.sample = torch.empty(0, width)
        self.sampled = torch.empty(0, dtype=torch.long)  # the ranks of the sample's rows

    def add(self, x: Tensor, index: Tensor | None = None) -> None:
        """x [..., K]: the next rows, in order. index int64: which of all rows they are, where some do not come."""
        rows = x.reshape(-1, x.shape[-1]).float()
        if self.hessian is not None:
            self.hessian.add(rows)
        self.absmax = torch.maximum(self.absmax, rows.abs().amax(0))
        rank = self.rank[self.count : self.count + len(rows)] if index is None else self.rank[index]
        self.count += len(rows)
        worst = self.sampled.max() if len(self.sampled) == self.size else len(self.rank)
        fresh = (rank < worst).nonzero().flatten()
        fresh = fresh[rank[fresh].argsort()[: self.size]].sort().values
        self.sample, self.sampled = torch.cat([self.sample, rows[fresh]]), torch.cat([self.sampled, rank[fresh]])
        if len(self.sampled) > self.size:
            kept = self.sampled.argsort()[: self.size].sort().values
            self.sample, self.sampled = self.sample[kept], self.sampled[kept]

    def stats(self) -> CalibStats:
        sample = self.sample
        squares = sample.double().square()
        energy = squares.sum(1)
        fourth = squares.square().sum(1) * sample.shape[1] / energy.square().clamp(min=1e-300)
        bins = ((sample.abs().clamp(min=1e-30).log2() - LOWEST) * BINS_PER_OCTAVE).floor().long()
        return CalibStats(
            count=self.count,
            hessian=self.hessian.value() if self.hessian is not None else None,
            absmax=self.absmax,
            histogram=torch.bincount(bins.clamp(0, BINS - 1).flatten(), minlength=BINS),
            clip_error=_clip_errors(sample),
            moments=torch.stack([torch.tensor(float(len(sample)), dtype=torch.float64), fourth.sum()]),
        )


def _clip_errors(rows: Tensor) -> Tensor:
    """Summed squared error of per-token quantization of rows [M, K] for all candidates."""
    out = torch.zeros(len(CLIP_BITS), 2, len(CLIP_RATIOS), dtype=torch.float64)
    for i, bits in enumerate(CLIP_BITS):
        for j, symmetric in enumerate((True, False)):
            for k, clip in enumerate(CLIP_RATIOS):
                error = fake_quantize(rows, bits, symmetric, clip).sub_(rows)
                out[i, j, k] = error.square_().sum(dtype=torch.float64)
    return out


@contextmanager
def observe_taps(
    block: nn.Module, taps: Sequence[Tap], callback: Callable[[Tap, Tensor, Tensor | None], None]
) -> Iterator[None]:
    """Call `callback(tap, x, rows)` once per run of the block, before the first linear of each tap multiplies x.

    rows: which of the run's tokens, counted over samples and positions, an expert was sent; None: x [B, S, K] is all.
    An expert without tokens is not heard of."""
    seen: set[str] = set()
    mixture = find_experts(block)

    def hook(tap: Tap) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if tap.name not in seen:
                seen.add(tap.name)
                callback(tap, args[0], mixture.rows if mixture is not None else None)

        return before

    with ExitStack() as stack:
        for tap in taps:
            for linear in tap.linears:
                handle = inner_linear(block, linear.name).register_forward_pre_hook(hook(tap))
                stack.callback(handle.remove)
        last = block.register_forward_hook(lambda *_: seen.clear(), always_call=True)
        stack.callback(last.remove)
        yield
