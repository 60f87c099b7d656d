"""What `dfq quantize` will make of a checkpoint, decided before any work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dfrot.arch import BoundArch, resolve
from dfrot.calib.calibration import HEAD, Calibration, file_stems
from dfrot.calib.hidden_states import HiddenStates
from dfrot.calib.input_costs import cost_windows
from dfrot.calib.stats import CalibStats
from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError, UnsupportedError
from dfrot.inputs import open_model
from dfrot.quant import algorithm, keep
from dfrot.quant.config import DfqConfig
from dfrot.quant.fp4 import shared_scale
from dfrot.quant.key_shift import refuses_key_shift
from dfrot.quant.scheme import FULL, INTEGERS, NO_SHIFT
from dfrot.rotation.online import OnlineRotations
from dfrot.runtime.transformers_reading import check_reading
from dfrot.stages.quantize.effort import EffortTuning, plan_effort
from dfrot.stages.quantize.layout import CheckpointLayout
from dfrot.stages.quantize.settings import DEFAULT, QUICK, QuantizeSettings
from dfrot.vision.llava_layout import has_vision_part, vision_digest

TOKENS_PER_COLUMN = 4
"""Tokens of a calibration that GPTQ should have for every column of a linear's input."""


@dataclass(frozen=True)
class QuantizePlan:
    """Everything that is read and decided before any work."""

    checkpoint: Checkpoint
    """The source checkpoint, under the names of the architecture."""
    arch: BoundArch
    """Its architecture."""
    settings: QuantizeSettings
    """What was asked for."""
    calibration: Calibration | None
    """Tokens and statistics, where they were given."""
    config: DfqConfig
    """The quantization entry of the result's config.json."""
    layout: CheckpointLayout
    """The tensors of the result."""
    request: dict[str, Any]
    """Settings and digests of the inputs: what decides the bytes of the result."""
    tuning: EffortTuning | None = None
    """What is tuned on, with effort high."""

    @property
    def rounds(self) -> bool:
        """Whether weights of blocks are quantized (a scheme may leave them in 16 bits)."""
        return self.settings.scheme.w_bits != FULL

    @property
    def propagates(self) -> bool:
        """Whether Hessians come from the partly quantized model, block by block, and not from the calibration."""
        return self.settings.propagate and algorithm(self.settings.algorithm).needs_hessian and self.rounds

    @property
    def few_tokens(self) -> str | None:
        """What to know where GPTQ has few tokens for its widest input: it fits their noise, and may end up worse than
        rounding (docs/results/fp4.md). Of a mixture, dense inputs alone: experts are counted one by one."""
        if self.calibration is None or not self.propagates:
            return None
        width = max(self.arch.shape(tap.linears[0])[1] for tap in self.arch.taps() if tap.expert is None)
        tokens = self.calibration.tokens().numel()
        if tokens >= TOKENS_PER_COLUMN * width:
            return None
        return (
            f"the calibration has {tokens} tokens, {tokens / width:.2g} for each of the {width} columns of the widest "
            f"input: below {TOKENS_PER_COLUMN} GPTQ may fit their noise and lose against rounding; calibrate on more"
        )

    @property
    def compensation(self) -> float:
        """Strength of the compensation of activation errors; 0 where errors do not propagate."""
        return self.settings.compensation if self.propagates else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the result and of the hidden states on the way: before and behind a block, of both models."""
        if self.calibration is None:
            return self.layout.nbytes
        tokens = self.calibration.tokens()
        states = 4 * HiddenStates.nbytes((*tokens.shape, self.arch.hidden))
        if self.settings.budget is not None:  # before that, those before every block, of fewer windows
            windows = cost_windows(tokens)
            states = max(states, (self.arch.n_layers + 1) * HiddenStates.nbytes((*windows.shape, self.arch.hidden)))
        return self.layout.nbytes + states


def plan_quantization(model: Path, calibration_path: Path | None, settings: QuantizeSettings) -> QuantizePlan:
    """Open checkpoint and calibration and decide what `settings` mean for them.

    Raises UnsupportedError for a checkpoint that is quantized already or a scheme that does not fit it, InputError for
    a missing calibration, MismatchError for the calibration of another checkpoint."""
    checkpoint, arch, source = _open_source(model)
    digest = checkpoint.digest()
    calibration = Calibration.open(calibration_path, arch, digest) if calibration_path is not None else None
    if calibration is None and (reason := settings.calibration_reason):
        raise InputError(
            f"{reason} needs a `calibration`: run dfq calibrate and give its folder, or use rtn", field="calibration"
        )
    if settings.effort == QUICK and calibration is not None and not settings.needs_calibration():
        raise InputError("`effort` quick reads no `calibration`; leave it out", field=("effort", "calibration"))
    config = result_config(arch, source, settings, calibration)
    choices = asdict(settings)
    for name in ("embed", "head"):  # left out where they decide nothing
        if not getattr(settings, name).quantized:
            del choices[name]
    if settings.budget is None:
        del choices["budget"]
    if settings.scheme.number_format == INTEGERS:
        del choices["group_scales"]
    else:
        choices["group_scales"] = settings.options().group_scales
    del choices["memory"]  # the bytes are the same
    del choices["tune_steps"], choices["tune_dataset"]  # what is tuned on stands in `tuning`
    if settings.effort == DEFAULT:
        del choices["effort"]
    if config.shifts_keys:
        choices["key_shift"] = config.key_shift
    else:
        del choices["key_shift"]
    uses_calibration = settings.needs_calibration() or config.shifts_keys
    request = {
        "model": digest,
        "calibration": calibration.digest if calibration is not None and uses_calibration else None,
        "settings": choices,
    }
    if has_vision_part(checkpoint.path):
        request["vision"] = vision_digest(checkpoint.path)
    layout = CheckpointLayout(checkpoint, arch, config)
    tuning = None
    if settings.tuned:
        assert calibration is not None
        tuning = plan_effort(checkpoint, arch, config, calibration, settings)
        request["tuning"] = {"text": tuning.text, "settings": tuning.label}
    return QuantizePlan(checkpoint, arch, settings, calibration, config, layout, request, tuning)


def _open_source(model: Path) -> tuple[Checkpoint, BoundArch, DfqConfig | None]:
    """The checkpoint, its architecture and its own quantization entry.

    Raises UnsupportedError when it is quantized already."""
    checkpoint = open_model(model)
    config_file = str(checkpoint.path / "config.json")
    entry = DfqConfig.of(checkpoint.config, config_file)
    if entry is not None and entry.scheme is not None:
        raise UnsupportedError(f"{model}: is quantized already; give the 16-bit checkpoint", file=model)
    checkpoint, arch = resolve(checkpoint, to_run=True)
    arch.check(checkpoint)
    check_reading(checkpoint, arch)
    return checkpoint, arch, entry


def result_config(
    arch: BoundArch, source: DfqConfig | None, settings: QuantizeSettings, calibration: Calibration | None
) -> DfqConfig:
    """The quantization entry of the result; the resets and online rotations of the source stay in force.

    Raises UnsupportedError for a KV cache that does not fill whole bytes."""
    scheme = replace(settings.scheme, a_clip=settings.clip)
    if scheme.kv_bits != FULL and arch.head_dim * scheme.kv_bits % 8:
        raise UnsupportedError(
            f"`scheme` {scheme.name}: head_dim {arch.head_dim} at {scheme.kv_bits} bits does not fill whole bytes; use "
            "4 or 8 bits for KV",
            field="scheme",
        )
    kept = keep.resolve(arch, settings.keep)
    if settings.head.quantized:
        kept = tuple(name for name in kept if name != arch.spec.head.name)
    _check_tables(arch, settings, kept)
    _check_budget(arch, source, settings, kept)
    head = arch.spec.head.name
    clips = {
        name: clip
        for name, clip in clips_at(arch, settings, calibration, scheme.a_bits).items()
        if name not in kept and clip != scheme.a_clip and not (name == head and settings.head.quantized)
    }
    online = source.online if source is not None else OnlineRotations()
    scales = {}
    if settings.scales_inputs and calibration is not None:
        left = {*kept, *((head,) if settings.head.quantized else ())}
        scales = {name: scale for name, scale in _input_scales(arch, calibration).items() if name not in left}
    config = DfqConfig(scheme, online, kept, settings.fake, settings.sinks, clips, a_scales=scales)
    resets = source.resets if source is not None else ()
    shift = _key_shift(arch, settings, calibration)
    return replace(config, resets=resets, embed=settings.embed, head=settings.head, key_shift=shift)


def _key_shift(arch: BoundArch, settings: QuantizeSettings, calibration: Calibration | None) -> str:
    """What is subtracted from keys. Raises UnsupportedError for a shift that was asked for and cannot be."""
    in_16_bits = settings.scheme.kv_bits == FULL
    reason = f"`scheme` {settings.scheme.name} keeps keys in 16 bits" if in_16_bits else refuses_key_shift(arch)
    if settings.key_shift == NO_SHIFT or (settings.key_shift is None and (reason or calibration is None)):
        return NO_SHIFT
    if reason:
        raise UnsupportedError(f"`key_shift={settings.key_shift}`: {reason}; leave it out", field="key_shift")
    return "mean"


def _check_tables(arch: BoundArch, settings: QuantizeSettings, kept: tuple[str, ...]) -> None:
    """Raise UnsupportedError for a tied head that would have to be stored a second time in 16 bits, and for more second
    rows than tokens."""
    head = arch.spec.head.name
    if settings.head.second_rows > arch.vocab_size:
        raise UnsupportedError(
            f"`head` {settings.head.name}: the model has {arch.vocab_size} tokens",
            field="head",
            limit=arch.vocab_size,
        )
    in_16_bits = not settings.head.quantized and (head in kept or settings.scheme.w_bits == FULL)
    if settings.embed.quantized and arch.tied and in_16_bits:
        raise UnsupportedError(
            f"`embed` {settings.embed.name}: the head shares the embedding's weight and would keep it in 16 bits; "
            "quantize it too, with `head`",
            field=("embed", "head"),
        )


def _check_budget(arch: BoundArch, source: DfqConfig | None, settings: QuantizeSettings, kept: tuple[str, ...]) -> None:
    """Raise UnsupportedError for models whose inputs a budget cannot tell apart, or has none of."""
    reason = None
    if arch.spec.experts is not None:
        reason = "a mixture of experts: which experts' inputs cost how much is not measured yet"
    elif source is not None and source.resets:
        reason = "the model resets massive activations, which gradients do not pass"
    elif all(name in kept for _, _, name in arch.linears()):
        reason = "no linear of the blocks is quantized"
    if settings.budget is not None and reason is not None:
        raise UnsupportedError(f"`budget` {settings.budget:g}: {reason}; leave it out", field="budget")


def clips_at(
    arch: BoundArch, settings: QuantizeSettings, calibration: Calibration | None, bits: int
) -> dict[str, float]:
    """Full linear name -> the clip ratio of its input with so many bits: with `a_clip` auto that with the least squared
    error at its tap, else the same for all."""
    if settings.a_clip != "auto" or bits == FULL or calibration is None:
        return dict.fromkeys(keep.linear_names(arch), settings.clip_of(bits))
    symmetric = settings.scheme.a_sym
    return {name: stats.best_clip(bits, symmetric) for name, stats in _input_stats(arch, calibration)}


def _input_scales(arch: BoundArch, calibration: Calibration) -> dict[str, float]:
    """Full linear name -> the constant scale of its NVFP4 input, from the largest magnitude of the calibration.

    Raises InputError for a calibration that does not know it."""
    if not calibration.has_statistics:
        raise InputError(
            f"{calibration.path}: holds tokens only, and scales of nvfp4 inputs come from statistics; calibrate with "
            "`statistics`, or use nvfp4a16",
            field="calibration",
            file=calibration.path,
        )
    return {name: float(shared_scale(stats.absmax.max())) for name, stats in _input_stats(arch, calibration)}


def _input_stats(arch: BoundArch, calibration: Calibration) -> Iterator[tuple[str, CalibStats]]:
    """Full linear names with the statistics of their inputs."""
    for number, stem in enumerate(file_stems(arch)):
        stats = calibration.stats(stem, hessians=False)
        if stem == HEAD:
            yield arch.spec.head.name, stats[arch.spec.head.name]
            continue
        for tap in arch.taps():
            for linear in tap.linears:
                yield arch.full(number, linear.name), stats[tap.name]
