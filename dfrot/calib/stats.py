"""What calibration keeps of the activations at one tap, in a form that merges.

The Hessian and the per-channel maxima cover every row. Distribution statistics (percentiles, kurtosis, the error of
candidate clip ratios) cover a seeded sample of rows: they are means, and a few hundred rows settle them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError, MismatchError

BINS_PER_OCTAVE, OCTAVES, LOWEST = 8, 64, -32  # histogram of log2 |x| from 2^-32 to 2^32
BINS = BINS_PER_OCTAVE * OCTAVES
CLIP_BITS = tuple(range(2, 9))
CLIP_RATIOS = tuple(1 - 0.05 * i for i in range(9))  # 1.0 .. 0.6, the range that DFRot's scripts sweep
MOMENTS = ("rows", "kurtosis")
SUMMARY_BITS = (3, 4, 8)  # bit widths whose best clip ratio a summary states


@dataclass(frozen=True)
class CalibStats:
    """Statistics of the rows [count, K] at one tap."""

    count: int
    """Rows that were observed."""
    hessian: Tensor | None
    """float32 [K, K], `(2 / count) sum x^T x`; None when it was not collected."""
    absmax: Tensor
    """float32 [K]: largest magnitude per channel."""
    histogram: Tensor
    """int64 [BINS] of log2 |x| over the sampled rows."""
    clip_error: Tensor
    """float64 [bits, sym/asym, ratio]: summed squared error of per-token quantization of the sampled rows."""
    moments: Tensor
    """float64 [2]: number of sampled rows, and the sum of their kurtoses."""

    @property
    def kurtosis(self) -> float:
        """Mean over rows of K sum x^4 / (sum x^2)^2: 3 for a Gaussian row, K for a row with a single non-zero."""
        return float(self.moments[1] / self.moments[0].clamp(min=1))

    def percentile(self, q: float) -> float:
        """|x| below which `q` percent of the sampled values lie, to the upper edge of a bin (1/8 octave)."""
        if not self.count:
            return 0.0
        total = self.histogram.cumsum(0)
        index = int(torch.searchsorted(total, (total[-1] * (q / 100)).ceil().clamp(min=1)))
        return float(2.0 ** (LOWEST + (min(index, BINS - 1) + 1) / BINS_PER_OCTAVE))

    def best_clip(self, bits: int, symmetric: bool) -> float:
        """The clip ratio with the least squared error; the largest one among equals."""
        return CLIP_RATIOS[int(self.clip_error[CLIP_BITS.index(bits), 0 if symmetric else 1].argmin())]

    def merge(self, other: CalibStats) -> CalibStats:
        """The statistics of both sets of rows together. Raises MismatchError when they do not match."""
        if self.absmax.shape != other.absmax.shape or (self.hessian is None) != (other.hessian is None):
            raise MismatchError("calibrations of different widths, or with and without Hessians, cannot be merged")
        count = self.count + other.count
        hessian = None
        if self.hessian is not None and other.hessian is not None:
            total = self.hessian.double().mul_(self.count).add_(other.hessian.double().mul_(other.count))
            hessian = total.div_(max(count, 1)).float()
        return CalibStats(
            count,
            hessian,
            torch.maximum(self.absmax, other.absmax),
            self.histogram + other.histogram,
            self.clip_error + other.clip_error,
            self.moments + other.moments,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by name, for storage; `from_tensors` is the inverse."""
        tensors = {
            "count": torch.tensor([self.count]),
            "absmax": self.absmax,
            "histogram": self.histogram,
            "clip_error": self.clip_error,
            "moments": self.moments,
        }
        return tensors if self.hessian is None else {**tensors, "hessian": self.hessian}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], width: int, location: str) -> CalibStats:
        """Raises InputError, beginning with `location`, when a tensor is missing or has another shape than a tap of
        `width` needs."""
        shapes = {
            "count": (1,),
            "absmax": (width,),
            "histogram": (BINS,),
            "clip_error": (len(CLIP_BITS), 2, len(CLIP_RATIOS)),
            "moments": (len(MOMENTS),),
            **({"hessian": (width, width)} if "hessian" in tensors else {}),
        }
        for name, shape in shapes.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                actual = list(tensors[name].shape) if name in tensors else "nothing"
                raise InputError(
                    f"{location}: {name} is {actual}, needs {list(shape)}; run dfq calibrate again", tensor=name
                )
        others = {name: tensors[name] for name in ("absmax", "histogram", "clip_error", "moments")}
        return cls(int(tensors["count"]), tensors.get("hessian"), **others)

    def summary(self) -> dict[str, Any]:
        """The statistics in a few numbers, as JSON."""

        def rounded(value: float) -> float:
            return float(f"{value:.6g}")

        return {
            "rows": self.count,
            "absmax": rounded(float(self.absmax.max())),
            "absmax_median_channel": rounded(float(self.absmax.median())),
            "p50": rounded(self.percentile(50)),
            "p99": rounded(self.percentile(99)),
            "p99.9": rounded(self.percentile(99.9)),
            "kurtosis": rounded(self.kurtosis),
            "clip": {
                f"a{bits}{'-sym' if symmetric else ''}": rounded(self.best_clip(bits, symmetric))
                for bits in SUMMARY_BITS
                for symmetric in (True, False)
            },
        }
