"""Settings of `dfq calibrate`."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.errors import InputError


@dataclass(frozen=True)
class CalibrateSettings:
    """dataset: wikitext2, stdlib or a path. samples x seqlen tokens are drawn by `seed`. hessians: keep them in
    the result (4 K^2 bytes per tap), for quantization without error propagation and for merging. statistics: False
    keeps the tokens alone, all that GPTQ with error propagation needs."""

    dataset: str = "wikitext2"
    samples: int = 128
    seqlen: int = 2048
    seed: int = 0
    hessians: bool = True
    statistics: bool = True

    def __post_init__(self) -> None:
        for name in ("samples", "seqlen"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: at least 1 is needed")
