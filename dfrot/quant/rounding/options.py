"""Settings of the weight quantization algorithms, besides the scheme."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.errors import UnsupportedError

MAX, FOUR_OVER_SIX, MSE = "max", "four-over-six", "mse"
GROUP_SCALES = (MAX, FOUR_OVER_SIX, MSE)
"""How the scales of groups of FP4 weights are chosen (fp4_grid.py)."""


@dataclass(frozen=True)
class AlgorithmOptions:
    """Settings of RTN and GPTQ."""

    mse_clip: bool = True
    """Search the clip ratio of every row or group."""
    act_order: bool = True
    """GPTQ rounds columns in the order of falling activation energy, whole groups where their scales are searched.
    Codes and scales are stored in the natural order."""
    damping: float = 0.01
    """Share of the mean Hessian diagonal that is added before factoring; the default is that of the GPTQ paper."""
    descent: int = 0
    """Passes of coordinate descent over the integers behind GPTQ (descent.py); with any, GPTQ also tries
    narrower ranges for rows of one scale."""
    guard: bool = True
    """A row whose GPTQ result is worse than rounding, on the damped Hessian, is rounded instead."""

    signed_scales: bool = True
    """Symmetric grids of at most NARROW bits: a scale takes the sign that gives the largest magnitude of its group the
    code 0. All 2^bits levels are then in use, one more than with positive scales."""
    search_scales: bool = True
    """GPTQ, groups of integers of at most NARROW bits, or of NVFP4 with `group_scales` mse: their scales are those with
    the least loss at the time when it reaches them (group_search.py). Groups must divide its blocks of 128
    columns; other scales are chosen beforehand, as for rounding."""
    fit_scales: bool = True
    """GPTQ, groups of integers of at most NARROW bits: once the codes stand, replace the scales of a row by those with
    the least output error. A row's only scale stays: fitted, it would shrink by the share of the noise, which lowers
    the error and raises perplexity (docs/results/ingredients.md)."""
    group_scales: str = MSE
    """FP4: how the scale of a group is chosen."""

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise UnsupportedError(
                f"`damping` {self.damping} is outside 0..1; GPTQ's own value is 0.01", field="damping"
            )
