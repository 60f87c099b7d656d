"""Settings of `dfq outliers` and `dfq outliers fix`."""

from __future__ import annotations

from dataclasses import dataclass, field

from dfrot.errors import InputError
from dfrot.outliers.measure.criteria import Criteria


@dataclass(frozen=True)
class RecipeSettings:
    """scheme, algorithm (rtn isolates what rotation and outlier handling do; gptq is slower and better), evaluation
    windows; samples x calibration_seqlen tokens for gptq, refine_seqlen for the refinement."""

    dataset: str = "wikitext2"
    scheme: str = "w4a4kv4"
    algorithm: str = "rtn"
    seqlen: int = 1024
    windows: int = 8
    seed: int = 0
    samples: int = 32
    calibration_seqlen: int = 1024
    refine_seqlen: int = 2048


@dataclass(frozen=True)
class OutlierSettings:
    """dataset: measured on `windows` stretches of `seqlen` tokens of its train split, each beginning as the tokenizer
    begins a text (with BOS, for most). rounds: of the refinement. ablate: confirm attributions by a second stream.
    perplexity: measure the recommended recipe and the default's (None: when the model is small); recipe: how."""

    dataset: str = "wikitext2"
    seqlen: int = 2048
    windows: int = 1
    seed: int = 0
    criteria: Criteria = field(default_factory=Criteria)
    rounds: int = 100
    ablate: bool = True
    perplexity: bool | None = None
    recipe: RecipeSettings = field(default_factory=RecipeSettings)

    def __post_init__(self) -> None:
        if self.seqlen < 8 or self.windows < 1 or self.rounds < 0:
            raise InputError(f"outliers: seqlen {self.seqlen} (at least 8), windows {self.windows} (at least 1)")


@dataclass(frozen=True)
class FixSettings:
    """fixes: `NAME:MODE`, applied in order; with search the candidates (none: all). outliers: how the report is made
    where none is given. recipe: quantized measurements (None of them with quantized=False). budget: trials of a
    search."""

    fixes: tuple[str, ...] = ()
    outliers: OutlierSettings = field(default_factory=lambda: OutlierSettings(perplexity=False))
    recipe: RecipeSettings = field(default_factory=RecipeSettings)
    quantized: bool = True
    search: bool = False
    budget: int = 12

    def __post_init__(self) -> None:
        from dfrot.outliers import fixes  # torch: settings are read without it

        for name in self.fixes:
            fixes.parse(name)
        if not self.fixes and not self.search:
            raise InputError(f"give --fix NAME (of {', '.join(fixes.names())}), or --search")
        if self.budget < 1:
            raise InputError(f"--budget {self.budget}: at least one trial is needed")
        if self.search and not self.quantized:
            raise InputError("--search compares quantized perplexities; leave out --no-quantized")
