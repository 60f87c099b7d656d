"""Settings of `dfq rotate`."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.errors import InputError
from dfrot.rotation.refinement.massive_rule import MassiveRule
from dfrot.rotation.refinement.settings import RefineSettings

METHODS = ("dfrot", "hadamard", "orthogonal", "none")


@dataclass(frozen=True)
class RotateSettings:
    """method: dfrot (refined on data), hadamard (randomised), orthogonal (random), none (weights untouched). It says
    what R1 is; an architecture that R1 cannot pass has R2, R3 and R4 alone, with method hadamard.

    dataset: calibration text of dfrot (train split) and tokens of the gate (test split); None lets the gate use
    seeded random ids and excludes dfrot. gamma: weight of massive tokens, a number or "auto". a_bits, a_sym,
    a_clip: the activation quantizer in the loop. massive_rule: as MassiveRule.parse reads it. online: use R3 and R4.
    r4_block: block of R4, None for the widest. gate: compare with the original before publishing."""

    method: str = "dfrot"
    dataset: str | None = "stdlib"
    seqlen: int = 2048
    seed: int = 0
    gamma: float | str = "auto"
    a_bits: int = 4
    a_sym: bool = False
    a_clip: float = 1.0
    rounds: int = 100
    massive_rule: str = "energy"
    online: bool = True
    r4_block: int | None = None
    gate: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"--method {self.method!r}: choose one of {', '.join(METHODS)}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed}: needs to lie in 0..2^63-1")
        if self.seqlen < 2:
            raise InputError(f"--seqlen {self.seqlen}: must be at least 2")
        if self.method == "dfrot" and self.dataset is None:
            raise InputError("--method dfrot refines on text: give a --dataset, or take --method hadamard")
        self.refinement()
        MassiveRule.parse(self.massive_rule)

    def refinement(self) -> RefineSettings:
        return RefineSettings(
            bits=self.a_bits,
            symmetric=self.a_sym,
            clip=self.a_clip,
            gamma=self.gamma,
            rounds=self.rounds,
            seed=self.seed,
        )
