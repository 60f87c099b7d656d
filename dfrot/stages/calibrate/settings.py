"""Settings of `dfq calibrate`."""

from __future__ import annotations

from dataclasses import dataclass

from dfrot.settings import check, dataset_setting, seed_setting, setting


@dataclass(frozen=True)
class CalibrateSettings:
    """Which text a checkpoint is calibrated on, and what is kept of it."""

    dataset: str = dataset_setting("wikitext2", "Text of the calibration (train split).")
    samples: int = setting(128, minimum=1, help="Number of windows, drawn from the text at random.")
    seqlen: int = setting(2048, minimum=2, help="Tokens of a window.")
    seed: int = seed_setting()
    hessians: bool = setting(
        True,
        help="Keep the second moments of every input (4 K^2 bytes for width K). GPTQ without error propagation and the "
        "merging of calibrations need them.",
    )
    statistics: bool = setting(
        True,
        help="Collect statistics. Without them the result holds the tokens alone and takes seconds: all that GPTQ "
        "with error propagation needs.",
    )

    def __post_init__(self) -> None:
        check(self)
