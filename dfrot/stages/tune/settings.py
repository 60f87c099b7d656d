"""Settings of `dfq tune`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dfrot.quant.scheme import QuantScheme
from dfrot.settings import check, dataset_setting, seed_setting, setting

ROW_RATE, GROUP_RATE = 2e-3, 4e-4


@dataclass(frozen=True)
class TuneSettings:
    """How long and on what a packed checkpoint is tuned."""

    dataset: str = dataset_setting("wikitext2", "Text to tune on (train split).")
    steps: int = setting(100, minimum=1, help="Optimizer steps.")
    batch: int = setting(8, minimum=1, help="Windows per step.")
    seqlen: int = setting(512, minimum=2, help="Tokens of a window.")
    lr: float | None = setting(
        None,
        above=0,
        help="Peak learning rate. Default: 0.002, or 0.0004 where groups of weights have scales of their own, which "
        "leave smaller errors.",
    )
    held_out: int = setting(8, minimum=1, help="Held-out windows that the divergence is measured on.")
    evaluations: int = setting(
        5, minimum=1, help="How often the divergence is measured. The best state is kept; the start is one of them."
    )
    seed: int = seed_setting()

    def __post_init__(self) -> None:
        check(self)

    def for_scheme(self, scheme: QuantScheme) -> TuneSettings:
        """The same with the learning rate decided."""
        return self if self.lr is not None else replace(self, lr=GROUP_RATE if scheme.w_group else ROW_RATE)

    @property
    def rate(self) -> float:
        """The peak learning rate, which must be decided."""
        assert self.lr is not None
        return self.lr
