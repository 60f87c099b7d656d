"""`dfq eval sensitivity`: what rounding one part of a model costs, while everything else stays exact."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dfrot.arch import BoundArch, described
from dfrot.checkpoint import Checkpoint
from dfrot.data.text import load_text
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import MismatchError, UnsupportedError
from dfrot.evaluate.intervals import perplexity_interval
from dfrot.evaluate.tokens import WindowReader
from dfrot.inputs import open_model
from dfrot.progress import Progress, silent
from dfrot.quant.config import DfqConfig
from dfrot.quant.rounding.options import AlgorithmOptions
from dfrot.rotation.refinement.massive_rule import MassiveRule
from dfrot.rotation.rotation import ROTATION_FILE
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stages.sensitivity.predictions import Positions, Predictor
from dfrot.stages.sensitivity.settings import SensitivitySettings
from dfrot.stages.sensitivity.sweep import TokenMasks, VariantStreams
from dfrot.stages.sensitivity.treatment import key_linear
from dfrot.stages.sensitivity.variants import all_variants

KIND = "eval sensitivity"


def sensitivity(
    model: Path, settings: SensitivitySettings, *, rotated: Path | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Round one part of checkpoint `model` at a time, and of its `rotated` form too if given.

    Returns {"kind", "dataset", "settings", "results"}; per checkpoint: perplexity of the exact model, `variants`
    (group, part, layer, perplexity, ratio, kl, top1, with intervals over windows), tokens by class. Rounding is to
    nearest, simulated in float32. Memory: the hidden states of all variants.

    Raises UnsupportedError for a quantized checkpoint, MismatchError for a `rotated` one of another shape or
    tokenizer."""
    checkpoints = [_open(path) for path in (model, *([] if rotated is None else [rotated]))]
    runners = [BlockRunner(checkpoint, arch) for checkpoint, arch in checkpoints]
    (_, arch), (_, last_arch) = checkpoints[0], checkpoints[-1]
    if (arch.n_layers, arch.hidden) != (last_arch.n_layers, last_arch.hidden):
        raise MismatchError(
            f"{rotated}: {last_arch.n_layers} layers of width {last_arch.hidden}, the model has {arch.n_layers} of "
            f"width {arch.hidden}; give the rotated form of this model",
            field="rotated",
            file=rotated,
        )
    text = load_text(settings.dataset, "test", load_tokenizer(model))
    reader = WindowReader(text, settings.seqlen, settings.windows)
    tokens = [reader.read(checkpoint.path) for checkpoint, _ in checkpoints]
    results: list[dict[str, Any]] = []
    masks: list[TokenMasks] | None = None
    for (checkpoint, bound), runner in zip(checkpoints, runners):
        is_rotated = _is_rotated(checkpoint)
        result, used = _measure(runner, tokens[0].windows, settings, is_rotated, masks, progress)
        masks = masks if is_rotated else used
        results.append({"model": str(checkpoint.path), "rotated": is_rotated, "layers": bound.n_layers, **result})
    dataset = text.record
    shown = {**asdict(settings), "scheme": settings.scheme.name, "windows": len(tokens[0].windows)}
    return {"kind": KIND, "dataset": dataset, "settings": shown, "results": results}


def _open(path: Path) -> tuple[Checkpoint, BoundArch]:
    """A 16-bit checkpoint. Raises UnsupportedError for a quantized one."""
    plain = open_model(path)
    config = DfqConfig.of(plain.config, str(plain.path / "config.json"))
    if config is not None and config.scheme is not None:
        raise UnsupportedError(f"{path}: is quantized already; give the 16-bit checkpoint", file=path)
    return described(plain)


def _is_rotated(checkpoint: Checkpoint) -> bool:
    """Whether dfq rotated it: single channels of the residual stream then have no meaning."""
    config = DfqConfig.of(checkpoint.config, str(checkpoint.path / "config.json"))
    return (checkpoint.path / ROTATION_FILE).is_file() or bool(config and config.online)


def _measure(
    runner: BlockRunner,
    windows: torch.Tensor,
    settings: SensitivitySettings,
    is_rotated: bool,
    masks: list[TokenMasks] | None,
    progress: Progress,
) -> tuple[dict[str, Any], list[TokenMasks]]:
    """The results of one checkpoint on windows int64 [B, S], and the classes of its tokens by layer.

    masks: those of the unrotated model, where it was measured before."""
    biased = key_linear(runner, 0) is not None
    classes = not is_rotated or masks is not None
    variants = all_variants(runner.arch, settings.scheme, layers=settings.layers, classes=classes, key_bias=biased)
    options = AlgorithmOptions(mse_clip=settings.mse_clip)
    streams = VariantStreams(runner, settings.scheme, options)
    given = masks if is_rotated else None
    exact, hidden, used = streams.run(windows, variants, MassiveRule.parse(settings.massive_rule), given, progress)
    positions = Positions.of(windows, settings.positions)
    predictor = Predictor(runner, settings.scheme, options, positions.of_states(exact))
    reference = predictor.compare(positions.of_states(exact), positions)
    rows = []
    for number, variant in enumerate(variants):
        progress("predictions", number, len(variants))
        predicted = predictor.compare(
            positions.of_states(hidden.pop(number, exact)),
            positions,
            weight=predictor.rounded_weight() if variant.head_weight else None,
            round_input=variant.head_input,
        )
        entry = {"group": variant.group, "part": variant.label, "layer": variant.layer}
        rows.append({**entry, **predicted.summary(reference.nll)})
    progress("predictions", len(variants), len(variants))
    perplexity, _ = perplexity_interval(reference.nll)
    result = {
        "perplexity": perplexity,
        "predictions": len(positions.target),
        "variants": rows,
        "tokens": {name: max(int(mask[name].sum()) for mask in used) for name in used[0]} if classes else None,
    }
    return result, used
