"""FP4 grids of weights: E2M1 codes, a small scale per group of columns, and how the scales are chosen.

Scales are chosen before any code is derived, on the numbers that can be stored: `max` maps the largest magnitude of a
group to 6; `four-over-six` to 6 or to 4 (arXiv 2512.02010), `mse` to whatever neighbouring scale of the format leaves
the smallest squared error. The first of equals wins, in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import dfrot_kernels  # noqa: F401  (registers torch.ops.dfq)
from dfrot.errors import InputError
from dfrot.number_formats import E2M1, E4M3, NO_EXPONENT, exponents, fp4_values
from dfrot.quant.fp4 import ROOM, group_peaks, peak_exponents, shared_scale, wanted_scales
from dfrot.quant.rounding.options import FOUR_OVER_SIX, MAX, MSE
from dfrot.quant.scheme import FP4_GROUPS, MXFP4, NVFP4, Fp4Scheme

CHUNK = 1 << 18  # elements searched together: the temporaries stay in cache
AROUND = {NVFP4: range(-4, 7), MXFP4: range(-1, 2)}
"""Codes of scales that are tried, from that of the peak on: a code of E4M3 is an eighth of an octave, one of E8M0 an
octave."""


def group_steps(scale: Tensor, shared: Tensor | None) -> Tensor:
    """Stored scales, E4M3 with `shared` float32 [1] or exponents uint8 without -> float32 factors of the codes."""
    if shared is None:
        return exponents(scale)
    return E4M3.decode(scale.view(torch.uint8)) / shared


@dataclass(frozen=True)
class Fp4Grid:
    """The grid of a weight [N, K] in G groups of columns."""

    number_format: str
    """`nvfp4` or `mxfp4`."""
    scale: Tensor
    """float8_e4m3fn [N, G] of NVFP4; exponents uint8 [N, G] of MXFP4."""
    shared: Tensor | None
    """float32 [1], by which scales are divided; None: MXFP4."""

    def steps(self, columns: Tensor) -> Tensor:
        """float32 factors [N, len(columns)] of the given column indices int64."""
        return group_steps(self.scale, self.shared)[:, columns // self.group]

    def encode(self, weight: Tensor) -> Tensor:
        """float32 [N, K] -> codes uint8 [N, K]: nearest grid point, half to even."""
        scaled = weight / self.steps(torch.arange(weight.shape[1]))
        return E2M1.encode(scaled.add_(0.0))  # -0.0 becomes 0

    def decode(self, codes: Tensor) -> Tensor:
        """codes uint8 [N, K] -> float32 [N, K]."""
        return E2M1.decode(codes).mul_(self.steps(torch.arange(codes.shape[1])))

    def round(self, weight: Tensor) -> Tensor:
        """The nearest weights that lie on the grid, float32."""
        return self.decode(self.encode(weight))

    def rows(self, begin: int, end: int) -> Fp4Grid:
        """The grid of rows begin .. end."""
        return Fp4Grid(self.number_format, self.scale[begin:end], self.shared)

    @property
    def group(self) -> int:
        """Columns per scale."""
        return FP4_GROUPS[self.number_format]

    def joined(self, below: Sequence[Fp4Grid]) -> Fp4Grid:
        """The grid of these rows and of others below them, which share the float32 scale."""
        return self._with(torch.cat([self._codes, *(grid._codes for grid in below)]))

    def selected(self, rows: Tensor) -> Fp4Grid:
        """The grid of the rows of these indices int64, in their order."""
        return self._with(self._codes[rows])

    def beside(self, right: Sequence[Fp4Grid]) -> Fp4Grid:
        """The grid of these groups of columns and of those right of them, which share the float32 scale."""
        return self._with(torch.cat([self._codes, *(grid._codes for grid in right)], 1))

    def mixed(self, rows: Tensor, other: Fp4Grid) -> Fp4Grid:
        """This grid, and in `rows` bool [N] the other one, which shares the float32 scale."""
        return self._with(torch.where(rows[:, None], other._codes, self._codes))

    def proposals(self, index: int, columns: Tensor, signed: bool) -> Fp4Grid:
        """Grids for the columns float32 [n, N] of group `index`, one below the other: N rows with its own scales, then
        N rows for each scale that `mse` tries. signed: without meaning here."""
        candidates = _candidates(columns.abs().amax(0), self.shared, MSE)
        return self._with(torch.cat([self._codes[:, index], *candidates])[:, None])

    @property
    def _codes(self) -> Tensor:
        """The scales as bytes [N, G], which can be joined and compared."""
        return self.scale.view(torch.uint8)

    def _with(self, codes: Tensor) -> Fp4Grid:
        """The same grid with other scales, uint8 [N, G]."""
        return Fp4Grid(self.number_format, codes.view(self.scale.dtype), self.shared)

    def columns(self, columns: Tensor) -> Fp4Columns:
        """Rounding of the columns of these indices int64, one after the other."""
        return Fp4Columns(self.steps(columns).T.contiguous())

    def tensors(self, codes: Tensor) -> dict[str, Tensor]:
        """Codes uint8 [N, K] and the grid as they are stored, by the last part of the tensor's name."""
        tensors = {"weight_packed": torch.ops.dfq.pack(codes, E2M1.bits), "weight_scale": self.scale}
        return tensors if self.shared is None else {**tensors, "weight_global_scale": self.shared}


@dataclass(frozen=True)
class Fp4Columns:
    """Columns of a weight, to be rounded one by one."""

    steps: Tensor
    """float32 [columns, N]."""

    def round(self, index: int, column: Tensor) -> tuple[Tensor, Tensor]:
        """Column `index` float32 [N] -> codes uint8 [N], and what they mean, float32 [N]."""
        codes = E2M1.encode((column / self.steps[index]).add_(0.0))
        return codes, E2M1.decode(codes).mul_(self.steps[index])


@dataclass(frozen=True)
class Fp4Weight:
    """A weight [N, K] as it is stored."""

    packed: Tensor
    """Codes uint8 [N, K / 2], two a byte, the even column in the low half."""
    scale: Tensor
    """As `Fp4Grid` has it."""
    shared: Tensor | None
    """As `Fp4Grid` has it."""

    def dequantize(self) -> Tensor:
        """float32 [N, K], exactly what `Fp4Grid.decode` gives."""
        values = fp4_values(self.packed)
        groups = values.view(*self.scale.shape, -1)
        return groups.mul_(group_steps(self.scale, self.shared).unsqueeze(-1)).view(values.shape)

    def check(self, name: str) -> None:
        """Raise InputError for scales that are no positive numbers, naming the tensor of module `name`."""
        bytes_ = self.scale.view(torch.uint8)
        bad = bytes_ == NO_EXPONENT if self.shared is None else (bytes_ == 0) | (bytes_ >= 127)
        tensor = f"{name}.weight_scale" if bool(bad.any()) else f"{name}.weight_global_scale"
        finite = self.shared is None or bool(torch.isfinite(self.shared).all() and (self.shared > 0).all())
        if bool(bad.any()) or not finite:
            raise InputError(
                f"tensor {tensor} holds scales that are no positive numbers; the checkpoint is damaged, make it again",
                tensor=tensor,
            )


def fit_fp4(weight: Tensor, scheme: Fp4Scheme, group_scales: str, peak: Tensor | None = None) -> Fp4Grid:
    """The grid of a weight float32 [N, K], K a multiple of the scheme's group, with finite values.

    group_scales: how scales are chosen. peak: the largest magnitude of all weights that share the float32 scale of
    NVFP4; None: this one's own."""
    shared = None
    if scheme.fp4 == NVFP4:
        peak = weight.abs().max() if peak is None else peak
        shared = shared_scale(peak, E4M3.largest if group_scales == MAX else ROOM)
    rows = weight.reshape(-1, scheme.w_group)
    chosen = [_chosen(part, shared, group_scales) for part in torch.split(rows, max(1, CHUNK // scheme.w_group))]
    codes = torch.cat(chosen).reshape(len(weight), -1)
    return Fp4Grid(scheme.fp4, codes if shared is None else codes.view(torch.float8_e4m3fn), shared)


def _chosen(rows: Tensor, shared: Tensor | None, group_scales: str) -> Tensor:
    """The codes uint8 [R] of the scales of groups float32 [R, g]."""
    peaks = group_peaks(rows, rows.shape[1])[:, 0]
    candidates = _candidates(peaks, shared, group_scales)
    best = candidates[0]
    if len(candidates) > 1:
        least = torch.full_like(peaks, torch.inf)
        for codes in candidates:
            steps = group_steps(codes, shared).unsqueeze(1)
            error = E2M1.round(rows / steps).mul_(steps).sub_(rows).square_().sum(1)
            better = error < least
            best, least = torch.where(better, codes, best), torch.where(better, error, least)
    return best


def _candidates(peaks: Tensor, shared: Tensor | None, group_scales: str) -> list[Tensor]:
    """Codes uint8 [R] of the scales that are tried, that of the peak first. Zero is no scale."""
    if shared is None:
        base, low, high = peak_exponents(peaks), 0, NO_EXPONENT - 1
        around = AROUND[MXFP4]
    else:
        base, low, high = E4M3.encode(wanted_scales(peaks, shared)), 1, 126
        around = AROUND[NVFP4]
    tried = [base.clamp(low, high)]
    if group_scales == FOUR_OVER_SIX and shared is not None:
        tried.append(E4M3.encode(wanted_scales(peaks, shared, 4.0)).clamp(low, high))
    if group_scales == MSE:
        tried += [(base.int() + move).clamp_(low, high).to(torch.uint8) for move in around if move]
    return tried
