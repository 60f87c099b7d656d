"""`dfq eval ppl`: perplexity of one or more checkpoints on the same windows, with intervals and agreement."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.data.text import load_text
from dfrot.errors import InputError
from dfrot.evaluate.intervals import Interval, mean_interval, perplexity_interval, ratio_interval
from dfrot.evaluate.logits import Baseline, WindowAgreement, agreement_observer
from dfrot.evaluate.ppl import PROTOCOL, window_losses
from dfrot.evaluate.speed import decode_speed
from dfrot.evaluate.tokens import EvalTokens, WindowReader
from dfrot.files import digest_json
from dfrot.quant.config import DfqConfig
from dfrot.runtime.load import check_folder, load_model
from dfrot.stage_folder import Progress, silent
from dfrot.stages.evaluate.settings import PerplexitySettings


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def evaluate(models: Sequence[Path], settings: PerplexitySettings, progress: Progress = silent) -> dict[str, Any]:
    """Evaluate checkpoint folders on the same windows.

    Returns {"protocol", "dataset", "results"}; per result: model, perplexity, ci, tokens, windows, ratio_to_first,
    ratio_ci (paired over windows), kl, kl_ci, top1, tokens_per_second, decode_tokens_per_second, bytes_on_disk
    (of the weights), scheme, fake, protocol. Raises DfqError before any work when a folder cannot be loaded,
    MismatchError when two tokenizers read the text differently."""
    if not models:
        raise InputError("no checkpoint to evaluate; give --model")
    if settings.batch < 1:
        raise InputError(f"batch: {settings.batch} is not a positive count")
    checked = [check_folder(Path(model)) for model in models]
    text = load_text(settings.dataset, settings.split)  # type: ignore[arg-type]
    reader = WindowReader(text, settings.seqlen, settings.windows)
    tokens = [reader.read(Path(model)) for model in models]
    results: list[dict[str, Any]] = []
    losses: list[Tensor] = []
    baseline: Baseline | None = None
    with _threads(settings.threads):
        for (checkpoint, config), given in zip(checked, tokens):
            result, nll, baseline = _one(checkpoint, config, given, settings, baseline, progress)
            losses.append(nll)
            ratio, ratio_ci = ratio_interval(nll, losses[0], settings.level)
            result["ratio_to_first"] = ratio
            result["ratio_ci"] = _list(ratio_ci) if len(results) else [1.0, 1.0]
            result["protocol"] = _protocol(text.digest, given, settings, result["logits_dtype"])
            results.append(result)
    return {
        "protocol": results[0]["protocol"],
        "dataset": {"name": text.name, "split": text.split, "digest": text.digest},
        "level": settings.level,
        "results": results,
    }


def _one(
    checkpoint: Checkpoint,
    config: DfqConfig | None,
    given: EvalTokens,
    settings: PerplexitySettings,
    baseline: Baseline | None,
    progress: Progress,
) -> tuple[dict[str, Any], Tensor, Baseline | None]:
    """One checkpoint's numbers, its losses per window, and the baseline for those that follow."""
    path = checkpoint.path
    model = load_model(path, settings.dtype, settings.fake).to(settings.device)
    count = len(given.windows)
    agreement: WindowAgreement | None = None
    observe: Callable[[int, Tensor], None] | None = None
    if settings.kl and baseline is None:
        baseline = Baseline(model)
        observe = baseline.record
    elif settings.kl and baseline is not None:
        observe, agreement = agreement_observer(model, baseline, count)
    begin = time.perf_counter()
    nll = window_losses(
        model, given.windows, settings.batch, lambda done: progress(f"evaluate {path.name}", done, count), observe
    )
    seconds = time.perf_counter() - begin
    value, interval = perplexity_interval(nll, settings.level)
    result: dict[str, Any] = {
        "model": str(path),
        "perplexity": value,
        "ci": _list(interval),
        "tokens": given.windows.numel(),
        "windows": count,
        "window_nll": nll.tolist(),
        "tokens_per_second": given.windows.numel() / seconds,
        "decode_tokens_per_second": None,
        "bytes_on_disk": sum(file.stat().st_size for file in {entry.file for entry in checkpoint.entries.values()}),
        "scheme": config.scheme.name if config and config.scheme else None,
        "fake": bool(config and config.scheme and (config.fake or settings.fake)),
        "logits_dtype": str(model.dtype).removeprefix("torch."),
        "kl": None,
        "kl_ci": None,
        "top1": None,
    }
    if settings.kl:
        kl = agreement.kl if agreement else torch.zeros(count)
        result["kl"], kl_ci = mean_interval(kl, settings.level)
        result["kl_ci"] = _list(kl_ci)
        result["top1"] = float(agreement.top1.mean()) if agreement else 1.0
    if settings.decode:
        result["decode_tokens_per_second"] = decode_speed(model, given.tokenizer, settings.decode)
    if baseline is not None and agreement is None:
        baseline.finish()
    return result, nll, baseline


def _list(interval: Interval) -> list[float] | None:
    return None if interval is None else list(interval)


def _protocol(text: str, given: EvalTokens, settings: PerplexitySettings, dtype: str) -> dict[str, Any]:
    """What was measured, with an id: two numbers compare only when their ids are equal."""
    record: dict[str, Any] = {
        "name": PROTOCOL,
        "text": text,
        "token_ids": given.digest,
        "seqlen": settings.seqlen,
        "windows": len(given.windows),
        "windows_in_text": given.total // settings.seqlen,
        "bos": "once, at the start of the text" if given.bos else "none",
        "logits_dtype": dtype,
        "loss_dtype": "float32",
    }
    # the same ids from differently written tokenizer files are the same measurement
    return {"id": f"{PROTOCOL}:{digest_json(record)[:12]}", "tokenizer": given.tokenizer_digest, **record}
