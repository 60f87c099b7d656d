"""`dfq eval kl`: divergence of checkpoints from the first one, over the windows of the perplexity protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.data.text import load_text
from dfrot.errors import InputError
from dfrot.evaluate.divergence import TokenDivergence, divergence_observer
from dfrot.evaluate.intervals import perplexity_interval
from dfrot.evaluate.logits import Baseline
from dfrot.evaluate.ppl import window_losses
from dfrot.evaluate.tokens import WindowReader
from dfrot.runtime.load import check_folder, load_model
from dfrot.stage_folder import Progress, silent
from dfrot.stages.evaluate.settings import KlSettings

KIND = "eval kl"


def divergence(models: Sequence[Path], settings: KlSettings, progress: Progress = silent) -> dict[str, Any]:
    """{"kind", "dataset", "settings", "results"}: per checkpoint behind the first its `TokenDivergence.summary`, and
    the perplexity of all. The baseline's final hidden states are kept in memory (windows x seqlen x width).

    Raises InputError for fewer than two checkpoints, MismatchError when two tokenizers read the text differently."""
    if len(models) < 2:
        raise InputError("eval kl compares with a baseline: give --model twice or more, the baseline first")
    checked = [check_folder(Path(model)) for model in models]
    text = load_text(settings.dataset, "test")
    reader = WindowReader(text, settings.seqlen, settings.windows)
    tokens = [reader.read(Path(model)) for model in models]
    results: list[dict[str, Any]] = []
    baseline: Baseline | None = None
    observe: Callable[[int, Tensor], None]
    for (checkpoint, config), given in zip(checked, tokens):
        model = load_model(checkpoint.path, settings.dtype, settings.fake)
        found = TokenDivergence.empty(*given.windows.shape)
        if baseline is None:
            baseline = Baseline(model)
            observe = baseline.record
        else:
            observe = divergence_observer(model, baseline, given.windows, found)

        def told(done: int, name: str = checkpoint.path.name, total: int = len(given.windows)) -> None:
            progress(f"evaluate {name}", done, total)

        nll = window_losses(model, given.windows, settings.batch, told, observe)
        if not results:
            baseline.finish()
        scheme = config.scheme.name if config is not None and config.scheme is not None else None
        summary = found.summary() if results else {}
        results.append(
            {"model": str(checkpoint.path), "scheme": scheme, "perplexity": perplexity_interval(nll)[0], **summary}
        )
    dataset = {"name": text.name, "split": text.split, "digest": text.digest, "token_ids": tokens[0].digest}
    counted = {"windows": len(tokens[0].windows), **asdict(settings)}
    return {"kind": KIND, "dataset": dataset, "settings": counted, "results": results}
