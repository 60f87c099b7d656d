"""Settings of `dfq compare`."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.errors import InputError, UnsupportedError
from dfrot.quant.scheme import FULL, QuantScheme


@dataclass(frozen=True)
class CompareSettings:
    """schemes: names as QuantScheme.parse reads them. seeds: how many, from `seed` on, for what is random.
    seqlen, windows: of the evaluation (None: all windows). samples, calibration_seqlen: of GPTQ's calibration.
    refine_seqlen, gamma: of the refinement and its one sample. decode: tokens of the greedy speed measurement, first
    seed only (0: none). tune: steps of a further row, GPTQ + DFRot tuned end to end (0: no such row). keep: leave the
    checkpoints in `out`/work."""

    schemes: tuple[str, ...] = ("w4a4kv4", "w3a3kv3")
    seeds: int = 3
    seed: int = 0
    dataset: str = "wikitext2"
    seqlen: int = 2048
    windows: int | None = None
    samples: int = 128
    calibration_seqlen: int = 2048
    refine_seqlen: int = 2048
    gamma: float | str = "auto"
    batch: int = 4
    decode: int = 32
    tune: int = 0
    keep: bool = False

    def __post_init__(self) -> None:
        if self.seeds < 1 or not self.schemes:
            raise InputError("compare: at least one seed and one scheme are needed")
        for scheme in self.parsed().values():
            if scheme.w_bits == FULL or scheme.a_bits == FULL:
                raise UnsupportedError(f"scheme {scheme.name}: compare quantizes weights and activations")

    def parsed(self) -> dict[str, QuantScheme]:
        return {name: QuantScheme.parse(name) for name in self.schemes}
