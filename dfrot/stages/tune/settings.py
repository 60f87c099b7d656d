"""Settings of `dfq tune`."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.errors import InputError


@dataclass(frozen=True)
class TuneSettings:
    """steps of `batch` windows of `seqlen` tokens each from the train split; lr: peak; held_out: windows on which the
    divergence is measured `evaluations` times, the best of which is kept (the start is one of them)."""

    dataset: str = "wikitext2"
    steps: int = 100
    batch: int = 8
    seqlen: int = 512
    lr: float = 2e-3
    held_out: int = 8
    evaluations: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "held_out", "evaluations", "lr"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be positive")
