"""Settings of `dfq quantize`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dfrot.errors import UnsupportedError
from dfrot.quant import ALGORITHMS, algorithm
from dfrot.quant.rounding.options import FOUR_OVER_SIX, GROUP_SCALES, AlgorithmOptions
from dfrot.quant.scheme import (
    FULL,
    INTEGERS,
    KEY_SHIFTS,
    MOST_SINKS,
    NVFP4,
    QuantScheme,
    default_clip,
    default_sinks,
)
from dfrot.quant.table import TableScheme
from dfrot.settings import check, setting
from dfrot.stages.tune.settings import TuneSettings

COMPENSATION = 0.5  # the full step overfits calibrations of 10^5 tokens
RAISED_BITS = 8
"""Bits of the inputs that a budget raises."""
DEFAULT, QUICK, HIGH = "default", "quick", "high"
EFFORTS = {QUICK: "rtn", DEFAULT: "gptq", HIGH: "gptq"}
"""Effort -> the algorithm that it chooses."""


@dataclass(frozen=True)
class QuantizeSettings:
    """How a checkpoint is quantized."""

    scheme: QuantScheme = setting(
        default_factory=QuantScheme, help="Bits and conventions: w4a4kv4, w4a16-g128, w3a3kv3, nvfp4, mxfp4a16, ..."
    )
    algorithm: str = setting(
        None,
        choices=tuple(ALGORITHMS),
        help="gptq (needs a calibration) or rtn, rounding to nearest. Default: what `effort` says.",
    )
    mse_clip: bool = setting(
        AlgorithmOptions.mse_clip, help="Search the clip ratio of every weight row or group for the smallest error."
    )
    signed_scales: bool = setting(
        AlgorithmOptions.signed_scales,
        help="Symmetric integers of at most 4 bits: scales may be negative. 4 bits hold -8 .. 7; the sign of the scale "
        "gives the level -8 to the side with the largest weight of the row or group. Without: all scales are positive, "
        "and -8 is not used.",
    )
    search_scales: bool = setting(
        AlgorithmOptions.search_scales,
        help="GPTQ, groups of nvfp4 or of integers of at most 4 bits: when it reaches the columns of a group, choose "
        "the scale that adds least to the error of the output. Without: scales are chosen beforehand, as for rounding.",
    )
    fit_scales: bool = setting(
        AlgorithmOptions.fit_scales,
        help="GPTQ with groups, of at most 4 bits: once the integers of a row are found, replace its scales by those "
        "with the least output error.",
    )
    group_scales: str | None = setting(
        None,
        choices=GROUP_SCALES,
        help="nvfp4 and mxfp4: how the scale of a group of weights is chosen. max: its largest magnitude becomes 6. "
        "four-over-six (nvfp4): 6 or 4. mse: the scale with the smallest squared error. Default: mse.",
    )
    act_order: bool = setting(
        AlgorithmOptions.act_order,
        help="GPTQ: round columns in the order of falling activation energy, whole groups where their scales are "
        "searched. Nothing of it shows in the result's format.",
    )
    damping: float = setting(
        AlgorithmOptions.damping,
        above=0,
        maximum=1,
        help="GPTQ: share of the Hessian's mean diagonal that is added before it is factored.",
    )
    descent: int = setting(
        AlgorithmOptions.descent,
        minimum=0,
        help="GPTQ: passes of coordinate descent over the integers that it found: every column is rounded again, given "
        "all others. Any number above 0 also tries narrower ranges of rows. 2 lower the weights' error by 8 % in twice "
        "the time; perplexity hardly changes.",
    )
    keep: tuple[str, ...] = setting(
        ("lm_head",),
        metavar="NAME",
        help="Linears that stay in 16 bits, as names or patterns; repeatable. An empty name quantizes all.",
    )
    embed: TableScheme = setting(
        default_factory=TableScheme,
        metavar="BITS",
        help="Bits of the embedding: 16, 8 (one scale per token) or 4 (groups of 32 columns); other grids are written "
        "8-g64, 4-g64-asym. It is rounded to nearest.",
    )
    head: TableScheme = setting(
        default_factory=TableScheme,
        metavar="BITS",
        help="Bits of the head's weight, written like those of `embed`; its activations stay in 16 bits, and `keep` "
        "does not apply to it. 4+N adds a second row of 4 bits for each of the N most frequent tokens of the "
        "calibration. 16: as `scheme` and `keep` say.",
    )
    propagate: bool = setting(
        True,
        help="GPTQ: collect each block's Hessians behind the quantized blocks before it, with quantized activations. "
        "Without: take those of the calibration (the 16-bit model's).",
    )
    fake: bool = setting(False, help="Write the simulated model: dense float32 weights that lie on the integer grid.")
    sink_tokens: int | None = setting(
        None,
        minimum=0,
        maximum=MOST_SINKS,
        help="Leading positions whose activations and KV cache stay in full precision. Default: 4 where activations "
        "are integers on an asymmetric grid and they or the KV cache have at most 4 bits, else 0 (engines with "
        "symmetric grids know no sinks).",
    )
    key_shift: str | None = setting(
        None,
        choices=KEY_SHIFTS,
        help="What is subtracted from keys before the cache rounds them; attention stays the same. mean: their mean "
        "per head and channel behind RoPE, over the first 4096 tokens of the calibration; none: nothing. Default: "
        "mean, where keys are quantized, a calibration is given and the architecture allows it.",
    )
    a_clip: float | Literal["auto"] | None = setting(
        None,
        words=("auto",),
        metavar="C",
        help="Clip ratio of activations: a number in 0.1..1, or auto for the best ratio of every input according to "
        "the calibration. Default: 0.85 where activations have at most 4 bits on an asymmetric grid, else 1.",
    )
    budget: float | None = setting(
        None,
        above=2,
        maximum=RAISED_BITS,
        metavar="BITS",
        help="Give activations this many bits on average, more than `scheme` says: the inputs of linears whose "
        "rounding costs most, measured on 4096 tokens of the calibration, are read in 8 bits. Weights keep theirs.",
    )
    compensate: float | None = setting(
        None,
        minimum=0,
        maximum=1,
        help="GPTQ: share of the error in a linear's input (from earlier blocks and from rounding the input) that is "
        "added back into its weight before that is rounded. Default: 0.5 with `propagate`, else 0.",
    )
    memory: float | None = setting(
        None,
        above=0,
        metavar="GB",
        help="GPTQ: the most memory for a block's activations, for each process. Where they do not fit, the block runs "
        "again for every input: up to twice the time, the same result. Default: half of the memory that is free when "
        "the run starts, shared between its processes, and at least 2.",
    )
    effort: str = setting(
        DEFAULT,
        choices=tuple(EFFORTS),
        help="quick: rounding to nearest without a calibration, in seconds. default: GPTQ. high: GPTQ, then scales and "
        "norm gains tuned end to end against the 16-bit checkpoint on the calibration's dataset (as dfq tune does); "
        "both models must fit into memory.",
    )
    tune_steps: int | None = setting(
        None,
        minimum=1,
        help="With `effort` high: optimizer steps of tuning, of 8 windows of 512 tokens each. Default: 100.",
    )
    tune_dataset: str | None = setting(
        None, metavar="D", help="With `effort` high: text to tune on. Default: the calibration's dataset."
    )

    def __post_init__(self) -> None:
        if self.algorithm is None:
            object.__setattr__(self, "algorithm", EFFORTS.get(self.effort, EFFORTS[DEFAULT]))
        check(self)
        self._check_effort()
        if self.budget is not None and not self.scheme.a_bits < self.budget:
            raise UnsupportedError(
                f"`budget` {self.budget:g}: is no more than the activations of `scheme` {self.scheme.name} have; take "
                "a larger one, or leave it out",
                field=("budget", "scheme"),
            )
        self._check_format()
        needs_hessian = algorithm(self.algorithm).needs_hessian
        if self.embed.second_rows:
            raise UnsupportedError("`embed`: second rows are for the head", field="embed")
        if self.compensate and not (self.propagate and needs_hessian):
            raise UnsupportedError(
                "`compensate` works on propagated errors: use `algorithm=gptq` with `propagate`, or leave it out",
                field=("compensate", "algorithm", "propagate"),
            )

    def _check_effort(self) -> None:
        """Raise UnsupportedError for settings that contradict the effort."""
        if self.effort == QUICK and self.needs_calibration() and self.algorithm == EFFORTS[QUICK]:
            raise UnsupportedError(
                f"`effort` quick reads no calibration, which {self.calibration_reason} needs; leave that out, or use "
                "`effort=default` with `algorithm=rtn`",
                field=("effort", "scheme", "a_clip", "budget", "key_shift", "head"),
            )
        if self.effort == HIGH and self.fake:
            raise UnsupportedError(
                "`fake`: a simulated checkpoint cannot be tuned; leave it out, or `effort` high",
                field=("fake", "effort"),
            )
        if self.effort == HIGH and self.scheme.w_bits == FULL:
            raise UnsupportedError(
                f"`scheme` {self.scheme.name}: schemes with 16-bit weights cannot be tuned yet; leave `effort` out",
                field=("scheme", "effort"),
            )
        for name in ("tune_steps", "tune_dataset"):
            if getattr(self, name) is not None and self.effort != HIGH:
                raise UnsupportedError(f"`{name}` belongs to `effort=high`", field=(name, "effort"))

    def _check_format(self) -> None:
        """Raise UnsupportedError for settings that have no meaning for integers, or none for FP4."""
        fp4, name = self.scheme.number_format, self.scheme.name
        if fp4 == INTEGERS:
            if self.group_scales is not None:
                raise UnsupportedError(
                    f"`scheme` {name}: `group_scales` is for nvfp4 and mxfp4; integers have `mse_clip`",
                    field=("group_scales", "scheme"),
                )
            return
        if not self.mse_clip:
            raise UnsupportedError(
                f"`scheme` {name}: `mse_clip` is for integers; use `group_scales=max`", field=("mse_clip", "scheme")
            )
        for option in ("signed_scales", "fit_scales"):
            if not getattr(self, option):
                raise UnsupportedError(f"`scheme` {name}: `{option}` is for integers", field=(option, "scheme"))
        if self.group_scales == FOUR_OVER_SIX and fp4 != NVFP4:
            raise UnsupportedError(
                f"`scheme` {name}: four-over-six needs scales finer than powers of two; use `group_scales=mse`",
                field=("group_scales", "scheme"),
            )
        if self.a_clip not in (None, 1):
            raise UnsupportedError(
                f"`scheme` {name}: every group of activations has its own scale; leave `a_clip` out",
                field=("a_clip", "scheme"),
            )
        if self.budget is not None:
            raise UnsupportedError(
                f"`scheme` {name}: `budget` raises inputs to integers of 8 bits; leave it out",
                field=("budget", "scheme"),
            )

    @property
    def tuned(self) -> bool:
        """Whether tuning end to end follows."""
        return self.effort == HIGH

    @property
    def meaning(self) -> str:
        """What the effort means with these settings, for a plan."""
        how = f"{self.algorithm}, {'with' if self.needs_calibration() else 'without'} a calibration"
        if not self.tuned:
            return how
        text = self.tune_dataset or "the calibration's dataset"
        steps = self.tune_steps or TuneSettings.steps
        windows = f"{TuneSettings.batch} x {TuneSettings.seqlen} tokens"
        return f"{how}, then {steps} tuning steps of {windows} of {text}; both models in memory, 3 bytes per weight"

    @property
    def budget_meaning(self) -> str:
        """What the budget means with these settings, for a plan. Which inputs it raises is not known before they are
        measured."""
        assert self.budget is not None
        share = (self.budget - self.scheme.a_bits) / (RAISED_BITS - self.scheme.a_bits)
        return (
            f"inputs with at most {100 * share:.3g} % of the products are read in {RAISED_BITS} bits, the others in "
            f"{self.scheme.a_bits}: a first pass over the calibration measures which ones"
        )

    def options(self) -> AlgorithmOptions:
        """The options of the weight quantization algorithm."""
        return AlgorithmOptions(
            self.mse_clip,
            self.act_order,
            self.damping,
            self.descent,
            signed_scales=self.signed_scales,
            search_scales=self.search_scales,
            fit_scales=self.fit_scales,
            group_scales=self.group_scales or AlgorithmOptions.group_scales,
        )

    @property
    def scales_inputs(self) -> bool:
        """Whether inputs need a constant scale from the calibration (NVFP4 activations)."""
        return self.scheme.number_format == NVFP4 and self.scheme.a_bits != FULL

    @property
    def compensation(self) -> float:
        """The strength in use."""
        if self.compensate is not None:
            return self.compensate
        propagates = self.propagate and algorithm(self.algorithm).needs_hessian and self.scheme.w_bits != FULL
        return COMPENSATION if propagates else 0.0

    @property
    def sinks(self) -> int:
        """The number of leading positions that stay exact."""
        if self.sink_tokens is not None:
            return self.sink_tokens
        return default_sinks(self.scheme.a_bits, self.scheme.kv_bits, self.scheme.a_sym)

    @property
    def clip(self) -> float:
        """The clip ratio of activations where `a_clip` names none of its own for an input."""
        return self.clip_of(self.scheme.a_bits)

    def clip_of(self, bits: int) -> float:
        """The clip ratio of activations of so many bits, where `a_clip` names none of its own for an input."""
        if isinstance(self.a_clip, float | int):
            return float(self.a_clip)
        if self.a_clip is None and self.scheme.a_clip == 1:
            return default_clip(bits, self.scheme.a_sym)
        return self.scheme.a_clip

    def needs_calibration(self) -> bool:
        """Whether these settings cannot do without a calibration."""
        return self.calibration_reason is not None

    @property
    def calibration_reason(self) -> str | None:
        """The setting that cannot do without a calibration, with its value, or None."""
        if self.tuned:
            return "effort high"
        if self.budget is not None:
            return f"budget {self.budget:g}"
        if self.scales_inputs:
            return f"scheme {self.scheme.name}"
        if self.key_shift == "mean":
            return "key shift mean"
        if self.head.second_rows:
            return f"head {self.head.name}"
        if self.a_clip == "auto" and self.scheme.a_bits != FULL:
            return "activation clip auto"
        rounds = self.scheme.w_bits != FULL or self.head.quantized
        return f"algorithm {self.algorithm}" if rounds and algorithm(self.algorithm).needs_hessian else None
