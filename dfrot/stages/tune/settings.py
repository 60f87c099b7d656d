"""Settings of `dfq tune`."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.settings import check, dataset_setting, seed_setting, setting


@dataclass(frozen=True)
class TuneSettings:
    """How long and on what a packed checkpoint is tuned."""

    dataset: str = dataset_setting("wikitext2", "Text to tune on (train split).")
    steps: int = setting(100, minimum=1, help="Optimizer steps.")
    batch: int = setting(8, minimum=1, help="Windows per step.")
    seqlen: int = setting(512, minimum=2, help="Tokens of a window.")
    lr: float = setting(2e-3, above=0, help="Peak learning rate.")
    held_out: int = setting(8, minimum=1, help="Held-out windows that the divergence is measured on.")
    evaluations: int = setting(
        5, minimum=1, help="How often the divergence is measured. The best state is kept; the start is one of them."
    )
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check(self)
