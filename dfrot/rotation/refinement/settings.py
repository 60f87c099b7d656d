"""Settings of the refinement of R1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfrot.errors import InputError

if TYPE_CHECKING:
    from dfrot.rotation.refinement.token_quantizer import TokenQuantizer

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class RefineSettings:
    """bits, symmetric, clip: the deployment quantizer of activations. gamma: weight of massive rows before squaring
    (paper: 100), or "auto": gamma^2 N_m / N = 10. rounds: at most, of either search. tol: stop when the objective
    falls by less than this share per round (mean over 12). precision: of the products; "auto" takes bfloat16 where
    the processor has it and the width is at least 1024. Nothing is drawn at random; seed is the start's, recorded."""

    bits: int = 4
    symmetric: bool = False
    clip: float = 1.0
    gamma: float | str = "auto"
    rounds: int = 100
    tol: float = 5e-4
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        _ = self.grid
        if self.gamma != "auto" and not (isinstance(self.gamma, (int, float)) and 0 <= self.gamma < 1e6):
            raise InputError(f"gamma {self.gamma!r}: 'auto' or a number from 0 to 1e6 is needed (paper: 100)")
        if self.rounds < 0 or not 0 <= self.tol < 1:
            raise InputError(f"rounds {self.rounds}, tol {self.tol}: rounds >= 0 and 0 <= tol < 1 are needed")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision {self.precision!r}: one of {', '.join(PRECISIONS)} is needed")

    @property
    def grid(self) -> TokenQuantizer:
        from dfrot.rotation.refinement.token_quantizer import TokenQuantizer  # torch: settings are read without it

        return TokenQuantizer(self.bits, self.symmetric, self.clip)
