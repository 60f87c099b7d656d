"""Confidence intervals over evaluation windows: Student t on the mean negative log-likelihood.

A window is the sampling unit: its tokens depend on each other, windows (nearly) do not. Perplexity is exp of a
mean, so its interval is exp of the mean's interval. Two checkpoints on the same windows are compared by the
paired difference, whose spread is a small fraction of either one's.
"""

from __future__ import annotations

import math

from scipy import stats
from torch import Tensor

from dfrot.errors import MismatchError
from dfrot.evaluate.settings import LEVEL

Interval = tuple[float, float] | None
"""Lower and upper end; None where a single window has no spread."""
LARGEST_EXPONENT = 700.0  # exp of more overflows float64


def as_list(interval: Interval) -> list[float] | None:
    """An interval as JSON."""
    return None if interval is None else list(interval)


def mean_interval(values: Tensor, level: float = LEVEL) -> tuple[float, Interval]:
    """Mean of float [n] and its two-sided Student t interval at confidence `level`."""
    values = values.double()
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, None
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * float(values.std()) / math.sqrt(n)
    return mean, (mean - half, mean + half)


def _exp(mean: float, interval: Interval) -> tuple[float, Interval]:
    try:
        return math.exp(mean), None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))
    except OverflowError:  # a destroyed model; inf would not be JSON either
        return math.exp(min(mean, LARGEST_EXPONENT)), None


def perplexity_interval(nll: Tensor, level: float = LEVEL) -> tuple[float, Interval]:
    """Perplexity and interval from the mean negative log-likelihood of each window, float [n]."""
    return _exp(*mean_interval(nll, level))


def ratio_interval(nll: Tensor, baseline: Tensor, level: float = LEVEL) -> tuple[float, Interval]:
    """Perplexity / baseline perplexity, with the paired interval; both are losses of the same windows, float [n].

    Raises MismatchError when they are not equally many."""
    if nll.shape != baseline.shape:
        raise MismatchError(f"paired interval: {len(nll)} windows against {len(baseline)}; use the same windows")
    return _exp(*mean_interval(nll.double() - baseline.double(), level))
