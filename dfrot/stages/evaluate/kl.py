"""`dfq eval kl`: divergence of checkpoints from the first one, over the windows of the perplexity protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dfrot.data.text import load_text
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import InputError
from dfrot.evaluate.baseline import Baseline
from dfrot.evaluate.divergence import Observe, TokenDivergence, divergence_observer
from dfrot.evaluate.intervals import perplexity_interval
from dfrot.evaluate.ppl import window_losses
from dfrot.progress import Progress, silent
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.runtime.load import load_model
from dfrot.stages.evaluate.inputs import open_checkpoints, read_windows
from dfrot.stages.evaluate.settings import KlSettings

KIND = "eval kl"


def divergence(
    models: Sequence[Path], settings: KlSettings, progress: Progress = silent, ranks: Ranks = SINGLE
) -> dict[str, Any]:
    """Compare checkpoints with the first of them, the baseline. ranks: share the windows; each returns the result.

    Returns {"kind", "dataset", "settings", "results"}: the perplexity of every checkpoint and, for all but the first,
    the `TokenDivergence.summary`. The baseline's final hidden states are kept in memory (windows x seqlen x width).

    Raises InputError for fewer than two checkpoints, MismatchError when two tokenizers read the text differently."""
    if len(models) < 2:
        raise InputError(
            "eval kl compares with a baseline: give `models` twice or more, the baseline first", field="models"
        )
    checkpoints = open_checkpoints(models)
    text = load_text(settings.dataset, "test", load_tokenizer(checkpoints[0].path))
    tokens = read_windows(checkpoints, text, settings.seqlen, settings.windows)
    results: list[dict[str, Any]] = []
    baseline: Baseline | None = None
    observe: Observe
    for checkpoint, eval_tokens in zip(checkpoints, tokens):
        model = load_model(checkpoint.path, settings.dtype, settings.fake)
        result = TokenDivergence.empty(*eval_tokens.windows.shape)
        if baseline is None:
            baseline = Baseline(model)
            observe = baseline.record
        else:
            observe = divergence_observer(model, baseline, eval_tokens.windows, result)

        def report(done: int, name: str = checkpoint.path.name, total: int = len(eval_tokens.windows)) -> None:
            progress(f"evaluate {name}", done, total)

        nll = window_losses(model, eval_tokens.windows, settings.batch, report, observe, ranks=ranks)
        result = result.filled(ranks)
        if not results:
            baseline.finish()
        summary = result.summary() if results else {}
        perplexity, _ = perplexity_interval(nll)
        result_of = {"model": str(checkpoint.path), "scheme": checkpoint.scheme, "perplexity": perplexity, **summary}
        notes = checkpoint.notes(settings.seqlen)
        results.append({**result_of, "notes": notes} if notes else result_of)
    dataset = text.record
    dataset["token_ids"] = tokens[0].digest
    # `windows` of the settings, which may be None, takes precedence over the count
    used = {"windows": len(tokens[0].windows), **asdict(settings)}
    return {"kind": KIND, "dataset": dataset, "settings": used, "results": results}
