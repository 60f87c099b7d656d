"""Settings of `dfq quantize`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dfrot.errors import UnsupportedError
from dfrot.quant import algorithm
from dfrot.quant.options import AlgorithmOptions
from dfrot.quant.scheme import FULL, QuantScheme

COMPENSATION = 0.5  # the full step overfits calibrations of 10^5 tokens


@dataclass(frozen=True)
class QuantizeSettings:
    """How to quantize.

    algorithm: gptq or rtn. mse_clip, act_order, damping: see `quant.options.Options`. keep: patterns of linears
    that stay in 16 bits. propagate: collect Hessians from the partly quantized model with quantized activations
    (False: those of the calibration). fake: write simulated weights, dense float32 on the integer grid.
    sink_tokens: leading positions whose activations and KV stay exact. a_clip: activation clip ratio; None takes
    the scheme's, "auto" the calibration's MSE-best one of each tap. compensate: how much of the error that
    quantized activations bring the weights shall take back, 0 (GPTQ as published) to 1; needs `propagate`. None:
    half of it where activations are quantized and errors propagate, otherwise nothing.
    """

    scheme: QuantScheme = field(default_factory=QuantScheme)
    algorithm: str = "gptq"
    mse_clip: bool = True
    act_order: bool = False
    damping: float = 0.01
    keep: tuple[str, ...] = ("lm_head",)
    propagate: bool = True
    fake: bool = False
    sink_tokens: int = 0
    a_clip: float | Literal["auto"] | None = None
    compensate: float | None = None

    def __post_init__(self) -> None:
        algorithm(self.algorithm)
        self.options()
        if self.sink_tokens < 0:
            raise UnsupportedError(f"sink tokens {self.sink_tokens}: cannot be negative")
        if isinstance(self.a_clip, str) and self.a_clip != "auto":
            raise UnsupportedError(f"activation clip {self.a_clip!r}: give auto or a ratio in 0.1..1")
        if not 0 <= (self.compensate or 0.0) <= 1:
            raise UnsupportedError(f"compensation {self.compensate} is outside 0..1; 0.5 is a good start")
        if self.compensate and not (self.propagate and algorithm(self.algorithm).needs_hessian):
            raise UnsupportedError(
                "compensation works on propagated errors: use gptq with propagation, or leave it out"
            )

    def options(self) -> AlgorithmOptions:
        return AlgorithmOptions(self.mse_clip, self.act_order, self.damping)

    @property
    def compensation(self) -> float:
        """The strength in use."""
        if self.compensate is not None:
            return self.compensate
        propagates = self.propagate and algorithm(self.algorithm).needs_hessian and self.scheme.w_bits != FULL
        return COMPENSATION if propagates and self.scheme.a_bits != FULL else 0.0

    def needs_calibration(self) -> bool:
        weights = self.scheme.w_bits != FULL and algorithm(self.algorithm).needs_hessian
        return weights or (self.a_clip == "auto" and self.scheme.a_bits != FULL)
