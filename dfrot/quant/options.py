"""What weight quantization algorithms can be asked for, besides the scheme."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.errors import UnsupportedError


@dataclass(frozen=True)
class AlgorithmOptions:
    """mse_clip: search the clip ratio of every row or group. act_order: GPTQ takes columns by falling activation
    energy. damping: share of the mean Hessian diagonal added before it is factored. guard: a row whose GPTQ
    result is worse than rounding (on the damped Hessian) is rounded instead."""

    mse_clip: bool = True
    act_order: bool = False
    damping: float = 0.01
    guard: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise UnsupportedError(f"damping {self.damping} is outside 0..1; GPTQ's own value is 0.01")
