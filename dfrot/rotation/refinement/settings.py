"""Settings of the refinement of R1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dfrot.settings import check, seed_setting, setting

if TYPE_CHECKING:
    from dfrot.rotation.refinement.token_quantizer import TokenQuantizer


@dataclass(frozen=True)
class RefineSettings:
    """How R1 is refined. Nothing is drawn at random: `seed` is the one of the start, for the record."""

    bits: int = setting(4, minimum=2, maximum=8, help="Bits of the activation quantizer that R1 is refined for.")
    symmetric: bool = setting(False, help="Refine for a symmetric activation quantizer.")
    clip: float = setting(
        1.0, above=0, maximum=1, help="Clip ratio of the activation quantizer that R1 is refined for."
    )
    gamma: float | str = setting(
        "auto",
        minimum=0,
        below=1e6,
        words=("auto",),
        metavar="X",
        help="Weight of massive tokens in the objective, before squaring: auto or a number. The paper takes 100; "
        "auto solves gamma^2 N_massive / N = 10.",
    )
    rounds: int = setting(100, minimum=0, help="The most refinement rounds of either search.")
    tol: float = setting(
        5e-4,
        minimum=0,
        below=1,
        help="Stop when the objective falls by less than this share per round, on average over 12 rounds.",
    )
    seed: int = seed_setting()
    precision: str = setting(
        "auto",
        choices=("auto", "float32", "bfloat16"),
        help="Precision of matrix products. auto takes bfloat16 from width 1024 on where the processor has it.",
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def grid(self) -> TokenQuantizer:
        """The quantizer of activations that the objective simulates."""
        from dfrot.rotation.refinement.token_quantizer import TokenQuantizer  # torch: settings are read without it

        return TokenQuantizer(self.bits, self.symmetric, self.clip)
