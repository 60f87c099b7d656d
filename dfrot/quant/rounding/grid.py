"""Integer grids of weights: the real numbers that a row (or group) of a weight can take.

A grid is one bfloat16 scale, and for asymmetric schemes one zero code, per row and group of columns. Codes are
unsigned, `w = scale (u - zero)` with u in [0, 2^bits - 1]; symmetric grids have zero = 2^(bits-1). Scales are
rounded to bfloat16 before any code is derived, so that what is stored is what was optimised (a code rounded
against the unrounded scale would be off by one where it matters). Zero is always on the grid, hence the columns
that pad a short last group change nothing. A scale may be negative (`parameters`, signed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dfrot.quant.second_rows import folded_weight
from dfrot_kernels.layouts import PackedWeight

TINY = 2.0**-100  # below this a row counts as zero: its scale would be lost in subnormals
RATIOS = (1.0, 1.05, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
"""What `Grid.proposals` multiplies the range of a group with."""


@dataclass(frozen=True)
class Grid:
    """The grid of a weight [N, K] in G groups of columns."""

    scale: Tensor
    """bfloat16 [N, G]."""
    zero: Tensor | None
    """Zero codes uint8 [N, G]; None: symmetric."""
    bits: int
    group: int
    """Columns per scale; 0: all."""

    def steps(self, columns: Tensor) -> Tensor:
        """float32 scales [N, len(columns)] of the given column indices int64."""
        return self.scale.float()[:, self._groups(columns)]

    def zeros(self, columns: Tensor) -> Tensor | float:
        """float32 zero codes [N, len(columns)], or the one constant of a symmetric grid."""
        if self.zero is None:
            return float(2 ** (self.bits - 1))
        return self.zero.float()[:, self._groups(columns)]

    def _groups(self, columns: Tensor) -> Tensor:
        return columns // self.group if self.group else torch.zeros_like(columns)

    def encode(self, weight: Tensor) -> Tensor:
        """float32 [N, K] -> codes uint8 [N, K]: nearest grid point, half to even."""
        columns = torch.arange(weight.shape[1])
        codes = torch.round(weight / self.steps(columns)).add_(self.zeros(columns))
        return codes.clamp_(0, 2**self.bits - 1).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        """codes uint8 [N, K] -> float32 [N, K], exactly `scale (u - zero)`: at most 16 significant bits."""
        columns = torch.arange(codes.shape[1])
        return codes.float().sub_(self.zeros(columns)).mul_(self.steps(columns))

    def round(self, weight: Tensor) -> Tensor:
        """The nearest weights that lie on the grid, float32."""
        return self.decode(self.encode(weight))

    def rows(self, begin: int, end: int) -> Grid:
        """The grid of rows begin .. end."""
        return Grid(self.scale[begin:end], None if self.zero is None else self.zero[begin:end], self.bits, self.group)

    def joined(self, below: Sequence[Grid]) -> Grid:
        """The grid of these rows and of others below them, of grids that differ in nothing else."""
        return self._all([self, *below], 0)

    def _all(self, grids: Sequence[Grid], dim: int) -> Grid:
        scale = torch.cat([grid.scale for grid in grids], dim)
        zeros = [grid.zero for grid in grids if grid.zero is not None]
        return replace(self, scale=scale, zero=torch.cat(zeros, dim) if zeros else None)

    def selected(self, rows: Tensor) -> Grid:
        """The grid of the rows of these indices int64, in their order."""
        return replace(self, scale=self.scale[rows], zero=None if self.zero is None else self.zero[rows])

    def beside(self, right: Sequence[Grid]) -> Grid:
        """The grid of these groups of columns and of those right of them."""
        return self._all([self, *right], 1)

    def mixed(self, rows: Tensor, other: Grid) -> Grid:
        """This grid, and in `rows` bool [N] the other one."""
        scale = torch.where(rows[:, None], other.scale, self.scale)
        if self.zero is None or other.zero is None:
            return replace(self, scale=scale)
        return replace(self, scale=scale, zero=torch.where(rows[:, None], other.zero, self.zero))

    def proposals(self, index: int, columns: Tensor, signed: bool) -> Grid:
        """Grids for the columns float32 [n, N] of group `index`, one below the other: N rows with its own scales, then
        N rows for each of `RATIOS`. signed: as for `parameters`."""
        low, high = torch.aminmax(columns, dim=0)
        low, high = low.clamp(max=0), high.clamp(min=0)
        others = [parameters(low * ratio, high * ratio, self.bits, self.zero is None, signed) for ratio in RATIOS]
        scale = torch.cat([self.scale[:, index], *(scale.bfloat16() for scale, _ in others)])
        if self.zero is None:
            return replace(self, scale=scale[:, None])
        zero = torch.cat([self.zero[:, index], *(zero.to(torch.uint8) for _, zero in others)])
        return replace(self, scale=scale[:, None], zero=zero[:, None])

    def columns(self, columns: Tensor) -> GridColumns:
        """Rounding of the columns of these indices int64, one after the other."""
        zeros = self.zeros(columns)
        if isinstance(zeros, Tensor):
            zeros = zeros.T.contiguous()
        return GridColumns(self.steps(columns).T.contiguous(), zeros, 2**self.bits - 1)

    def packed(self, codes: Tensor) -> PackedWeight:
        """The weight with these codes uint8 [N, K], as kernels take it."""
        return PackedWeight.from_codes(codes, self.scale, self.zero, self.bits, self.group)

    def tensors(self, codes: Tensor) -> dict[str, Tensor]:
        """Codes uint8 [N, K] and the grid as they are stored, by the last part of the tensor's name."""
        packed = self.packed(codes)
        tensors = {"weight_packed": packed.packed, "weight_scale": packed.scale}
        return tensors if packed.zero is None else {**tensors, "weight_zero": packed.zero}


@dataclass(frozen=True)
class GridColumns:
    """Columns of a weight, to be rounded one by one: contiguous vectors of length N."""

    steps: Tensor
    """float32 [columns, N]."""
    zeros: Tensor | float
    """Zero codes float32 [columns, N], or the one constant of a symmetric grid."""
    top: int
    """The largest code."""

    def round(self, index: int, column: Tensor) -> tuple[Tensor, Tensor]:
        """Column `index` float32 [N] -> codes uint8 [N], and what they mean, float32 [N]."""
        zero = self.zeros if isinstance(self.zeros, float) else self.zeros[index]
        code = torch.div(column, self.steps[index]).round_().add_(zero).clamp_(0, self.top)
        return code.to(torch.uint8), code.sub_(zero).mul_(self.steps[index])


class ColumnRounding(Protocol):
    """Columns of a weight, to be rounded one by one: `GridColumns`, `Fp4Columns`."""

    def round(self, index: int, column: Tensor) -> tuple[Tensor, Tensor]:
        """Column `index` float32 [N] -> codes uint8 [N], and what they mean, float32 [N]."""


class WeightGrid(Protocol):
    """The real numbers that a weight can take: `Grid` of integers, `Fp4Grid`. See the methods there."""

    def encode(self, weight: Tensor) -> Tensor:
        """float32 [N, K] -> codes uint8 [N, K] of the nearest grid points, half to even."""

    def decode(self, codes: Tensor) -> Tensor:
        """codes uint8 [N, K] -> float32 [N, K]."""

    def rows(self, begin: int, end: int) -> WeightGrid:
        """The grid of rows begin .. end."""

    def joined(self, below: Sequence[Any]) -> WeightGrid:
        """The grid of these rows and of others below them, of grids of this kind that differ in nothing else."""

    @property
    def scale(self) -> Tensor:
        """The scales as they are stored, [N, G]."""

    @property
    def group(self) -> int:
        """Columns per scale; 0: all."""

    def selected(self, rows: Tensor) -> WeightGrid:
        """The grid of the rows of these indices int64, in their order."""

    def beside(self, right: Sequence[Any]) -> WeightGrid:
        """The grid of these groups of columns and of those right of them, of grids of this kind."""

    def mixed(self, rows: Tensor, other: Any) -> WeightGrid:
        """This grid, and in `rows` bool [N] the other one, which differs in scales alone."""

    def proposals(self, index: int, columns: Tensor, signed: bool) -> WeightGrid:
        """Grids of one group for the columns float32 [n, N] of group `index`, one below the other: N rows with its own
        scales, then as many for each choice of others. signed: scales of symmetric integers may be negative."""

    def columns(self, columns: Tensor) -> ColumnRounding:
        """Rounding of the columns of these indices int64, one after the other."""

    def tensors(self, codes: Tensor) -> dict[str, Tensor]:
        """Codes and grid as they are stored, by the last part of the tensor's name."""


@dataclass(frozen=True)
class Quantized:
    """A quantized weight [N, K]."""

    codes: Tensor
    """uint8 [N, K]."""
    grid: WeightGrid
    stats: dict[str, Any]
    """Algorithm, errors and fallbacks, as plain JSON."""
    second: Tensor | None = None
    """int32 [R]: the rows to which the last R of `codes` and `grid` are added (dfrot/quant/second_rows.py)."""

    def dequantize(self) -> Tensor:
        """The weight as float32 [N, K]."""
        weight = self.grid.decode(self.codes)
        if self.second is None:
            return weight
        return folded_weight(weight, self.second, len(weight) - len(self.second))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are stored, by the last part of their names."""
        tensors = self.grid.tensors(self.codes)
        return tensors if self.second is None else {**tensors, "weight_second": self.second}

    def packed(self) -> PackedWeight:
        """A weight of integers as it is stored."""
        assert isinstance(self.grid, Grid)
        return self.grid.packed(self.codes)


def grouped(weight: Tensor, group: int) -> Tensor:
    """[N, K] -> [N G, group]: one row per scale; a short last group is padded with zeros."""
    k = weight.shape[1]
    if not group or group >= k:
        return weight
    padded = functional.pad(weight, (0, -k % group))
    return padded.reshape(-1, group)


def parameters(low: Tensor, high: Tensor, bits: int, symmetric: bool, signed: bool = False) -> tuple[Tensor, Tensor]:
    """Scale (float32 holding bfloat16 values) and zero code (float32 holding integers) for ranges [low, high].

    low <= 0 <= high, any shape. Symmetric: max(-low, high) / (2^(b-1) - 1), so that code 0 stays unused; signed: code 0
    is the end with the larger magnitude, for which a scale is negative where that end is `high`.
    """
    top = 2**bits - 1
    if symmetric and signed:
        scale = torch.where(high > -low, -high, -low) / 2 ** (bits - 1)
    elif symmetric:
        scale = torch.maximum(-low, high) / (2 ** (bits - 1) - 1)
    else:
        scale = (high - low) / top
    scale = torch.where(scale.abs() < TINY, torch.ones_like(scale), scale).bfloat16().float()
    if symmetric:
        return scale, torch.full_like(scale, 2 ** (bits - 1))
    return scale, torch.round(-low / scale).clamp_(0, top)


def fit(
    weight: Tensor, bits: int, symmetric: bool, group: int = 0, ratio: Tensor | None = None, signed: bool = False
) -> Grid:
    """The grid of a weight float32 [N, K]; `ratio` [N, G] shrinks the range (see `clip.search`), `signed` as for
    `parameters`.

    Values must be finite: weights are checked when they are read.
    """
    rows = grouped(weight, group)
    low, high = torch.aminmax(rows, dim=1)
    low, high = low.clamp(max=0), high.clamp(min=0)
    if ratio is not None:
        low, high = low * ratio.reshape(-1), high * ratio.reshape(-1)
    scale, zero = parameters(low, high, bits, symmetric, signed)
    scale, zero = scale.reshape(len(weight), -1), zero.reshape(len(weight), -1)
    return Grid(scale.bfloat16(), None if symmetric else zero.to(torch.uint8), bits, group)
