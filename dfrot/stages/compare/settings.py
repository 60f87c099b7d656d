"""Settings of `dfq compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfrot.errors import InputError, UnsupportedError
from dfrot.quant.scheme import FULL, QuantScheme
from dfrot.settings import check, dataset_setting, same_as, seed_setting, setting
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.compare.rows import ROWS, STANDARD, TUNED
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.stages.rotate.settings import RotateSettings


@dataclass(frozen=True)
class CompareSettings:
    """Which methods are compared on one model, and on how much text."""

    schemes: tuple[str, ...] = setting(
        ("w4a4kv4", "w3a3kv3"), option="--scheme", metavar="S", help="A scheme to compare under; repeatable."
    )
    rows: tuple[str, ...] = setting(
        (),
        listed=True,
        choices=tuple(ROWS),
        metavar="ROWS",
        help="The methods to compare, with commas between them; dfq compare --list-rows shows all. The unquantized "
        f"model is always among them. Default: {','.join(STANDARD)}.",
    )
    seeds: int = setting(3, minimum=1, help="Runs of everything random, with seeds from `seed` on.")
    seed: int = seed_setting()
    dataset: str = dataset_setting("wikitext2", "Text of calibration, refinement and evaluation.")
    also: tuple[str, ...] = setting(
        (), metavar="D", help="A further text to evaluate on, which nothing is calibrated on; repeatable."
    )
    seqlen: int = same_as(PerplexitySettings, "seqlen", help="Tokens of an evaluation window.")
    windows: int | None = same_as(PerplexitySettings, "windows")
    samples: int = same_as(CalibrateSettings, "samples", help="Windows of GPTQ's calibration.")
    calibration_seqlen: int = same_as(CalibrateSettings, "seqlen", help="Tokens of a calibration window.")
    refine_seqlen: int = same_as(RotateSettings, "seqlen")
    gamma: float | str = same_as(RotateSettings, "gamma")
    batch: int = same_as(PerplexitySettings, "batch")
    decode: int = setting(
        32, minimum=0, help="Tokens of the greedy speed measurement, first seed only; 0 leaves it out."
    )
    tune: int = setting(0, minimum=0, help=f"Steps of the row {TUNED}, tuned end to end; 0 leaves the row out.")
    store: Path | None = setting(
        None,
        metavar="DIR",
        help="Folder of everything measured, which later runs take over. Default: .compare beside `out`.",
    )
    keep: bool = setting(False, help="Keep every checkpoint in the folder work of `store`.")

    def __post_init__(self) -> None:
        check(self)
        if not self.schemes:
            raise InputError("`schemes`: at least one is needed", field="schemes")
        for scheme in self.parsed().values():
            scheme.require_integers("dfq compare measures")
            if scheme.w_bits == FULL or scheme.a_bits == FULL:
                raise UnsupportedError(
                    f"`schemes` {scheme.name}: compare quantizes weights and activations",
                    field="schemes",
                )

        tuned = [name for name in self.rows if ROWS[name].tuned]
        if tuned and not self.tune:
            raise InputError(f"`rows` {tuned[0]}: give the steps of tuning with `tune`", field=("rows", "tune"))
        if self.rows and self.tune and not tuned:
            raise InputError(f"`tune` {self.tune}: none of `rows` is tuned; add {TUNED}", field=("rows", "tune"))

    @property
    def row_names(self) -> tuple[str, ...]:
        """Names of the rows that are measured, in the order of the table."""
        standard = (*STANDARD, TUNED) if self.tune else STANDARD
        return tuple(name for name in ROWS if name in (self.rows or standard))

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts to measure on; the first one is also that of calibration."""
        return (self.dataset, *self.also)

    def parsed(self) -> dict[str, QuantScheme]:
        """The schemes by name."""
        return {name: QuantScheme.parse(name) for name in self.schemes}
