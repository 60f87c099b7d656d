"""Settings of `dfq outliers` and `dfq outliers fix`."""

from __future__ import annotations

from dataclasses import dataclass, field

from dfrot.errors import InputError
from dfrot.outliers.measure.criteria import Criteria
from dfrot.outliers.measure.settings import MeasureSettings
from dfrot.settings import check, dataset_setting, same_as, seed_setting, setting
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.settings import RotateSettings


@dataclass(frozen=True)
class RecipeSettings:
    """How the perplexity of a quantization recipe is measured."""

    dataset: str = dataset_setting("wikitext2", "Text of calibration, refinement and evaluation.")
    scheme: str = setting("w4a4kv4", help="Bits and conventions of the recipe: w4a4kv4, w4a16-g128, ...")
    algorithm: str = same_as(
        QuantizeSettings,
        "algorithm",
        default="rtn",
        help="rtn shows what rotation and outlier handling do by themselves; gptq is slower and better.",
    )
    seqlen: int = setting(1024, minimum=2, help="Tokens of an evaluation window.")
    windows: int = setting(8, minimum=1, help="Evaluation windows.")
    seed: int = seed_setting()
    samples: int = same_as(CalibrateSettings, "samples", default=32, help="Calibration windows of gptq.")
    calibration_seqlen: int = same_as(
        CalibrateSettings, "seqlen", default=1024, help="Tokens of a calibration window of gptq."
    )
    refine_seqlen: int = same_as(RotateSettings, "seqlen")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class OutlierSettings:
    """Which text outliers are measured on, what counts as one, and what the report holds."""

    dataset: str = dataset_setting("wikitext2", "Text to measure on (train split).")
    seqlen: int = setting(
        2048, minimum=8, help="Tokens of a measured window; each begins as the tokenizer begins a text."
    )
    windows: int = setting(1, minimum=1, help="Windows measured.")
    seed: int = seed_setting()
    criteria: Criteria = field(default_factory=Criteria)
    """What counts as an outlier."""
    rounds: int = same_as(MeasureSettings, "rounds")
    ablate: bool = same_as(MeasureSettings, "ablate")
    perplexity: bool | None = setting(
        None,
        option="--perplexity/--no-perplexity",
        help="Measure the perplexity of the recommended recipe and of the default one. Default: with `out`, for "
        "models of up to 1e9 parameters.",
    )
    recipe: RecipeSettings = field(default_factory=RecipeSettings)
    """How those perplexities are measured."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class FixSettings:
    """Which fixes are applied to a checkpoint, and how their effect is measured."""

    fixes: tuple[str, ...] = setting(
        (),
        option="--fix",
        metavar="NAME:MODE",
        help="A fix, repeatable, applied in order: gains:fold|smooth|one|mean, massive:mean|zero|smooth, "
        "query:balance, prefix:tokens. With `search`: the candidates.",
    )
    outliers: OutlierSettings = field(default_factory=lambda: OutlierSettings(perplexity=False))
    """How outliers are measured where no report is given."""
    recipe: RecipeSettings = field(default_factory=RecipeSettings)
    """How quantized perplexities are measured."""
    quantized: bool = setting(True, help="Also measure the quantized model before and after the fixes.")
    search: bool = setting(
        False, help="Add fixes one by one while the quantized perplexity falls. Candidates: those of `fixes`, or all."
    )
    budget: int = setting(12, minimum=1, help="The most trials of a search.")

    def __post_init__(self) -> None:
        from dfrot.outliers import fixes  # torch: settings are read without it

        check(self)
        for name in self.fixes:
            fixes.parse_fix(name)
        if not self.fixes and not self.search:
            raise InputError(
                f"no fix: give `fixes` (of {', '.join(fixes.fix_names())}), or `search`", field=("fixes", "search")
            )
        if self.search and not self.quantized:
            raise InputError(
                "`search` compares quantized perplexities: leave `quantized` on", field=("search", "quantized")
            )
