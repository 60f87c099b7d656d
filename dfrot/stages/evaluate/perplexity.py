"""`dfq eval ppl`: perplexity of one or more checkpoints on the same windows, with intervals and agreement."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.data.text import load_text
from dfrot.data.tokenizer import load_tokenizer
from dfrot.errors import InputError
from dfrot.evaluate.baseline import Baseline
from dfrot.evaluate.divergence import Observe, WindowAgreement, agreement_observer
from dfrot.evaluate.intervals import as_list, mean_interval, perplexity_interval, ratio_interval
from dfrot.evaluate.ppl import PROTOCOL, window_losses
from dfrot.evaluate.speed import decode_speed
from dfrot.evaluate.tokens import EvalTokens
from dfrot.files import digest_json
from dfrot.progress import Progress, silent
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.runtime.load import load_model
from dfrot.stages.evaluate.inputs import EvaluatedCheckpoint, open_checkpoints, read_windows
from dfrot.stages.evaluate.settings import PerplexitySettings


def evaluate(
    models: Sequence[Path], settings: PerplexitySettings, progress: Progress = silent, ranks: Ranks = SINGLE
) -> dict[str, Any]:
    """Evaluate checkpoint folders on the same windows. ranks: share the windows; each returns the result, speeds apart.

    Returns {"protocol", "dataset", "results"}; per result: model, perplexity, ci, tokens, windows, ratio_to_first,
    ratio_ci (paired over windows), kl, kl_ci, top1, tokens_per_second, decode_tokens_per_second, bytes_on_disk
    (of the weights), scheme, fake, protocol. Raises DfqError before any work when a folder cannot be loaded,
    MismatchError when two tokenizers read the text differently."""
    checkpoints = open_checkpoints(models)
    if settings.batch < 1:
        raise InputError(f"`batch` {settings.batch} is not a positive count", field="batch")
    tokenizer = load_tokenizer(checkpoints[0].path)
    text = load_text(settings.dataset, settings.split, tokenizer)  # type: ignore[arg-type]
    tokens = read_windows(checkpoints, text, settings.seqlen, settings.windows)
    results: list[dict[str, Any]] = []
    losses: list[Tensor] = []
    baseline: Baseline | None = None
    with _torch_threads(settings.threads):
        for checkpoint, eval_tokens in zip(checkpoints, tokens):
            model = load_model(checkpoint.path, settings.dtype, settings.fake).to(settings.device)
            result, nll, baseline = measure_model(model, checkpoint, eval_tokens, settings, baseline, progress, ranks)
            losses.append(nll)
            ratio, ratio_ci = ratio_interval(nll, losses[0], settings.level)
            result["ratio_to_first"] = ratio
            result["ratio_ci"] = as_list(ratio_ci) if len(results) else [1.0, 1.0]
            result["protocol"] = protocol_of(text.digest, eval_tokens, settings, result["logits_dtype"])
            results.append(result)
    return {
        "protocol": results[0]["protocol"],
        "dataset": text.record,
        "level": settings.level,
        "results": results,
    }


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the block; 0 leaves its setting."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_model(
    model: Any,
    checkpoint: EvaluatedCheckpoint,
    eval_tokens: EvalTokens,
    settings: PerplexitySettings,
    baseline: Baseline | None,
    progress: Progress,
    ranks: Ranks = SINGLE,
) -> tuple[dict[str, Any], Tensor, Baseline | None]:
    """The results of one loaded checkpoint, its losses per window float64 [n], and the baseline for those that follow:
    `baseline`, or this model where there is none yet and divergence is wanted."""
    count = len(eval_tokens.windows)
    agreement: WindowAgreement | None = None
    observe: Observe | None = None
    if settings.kl and baseline is None:
        baseline = Baseline(model)
        observe = baseline.record
    elif settings.kl and baseline is not None:
        observe, agreement = agreement_observer(model, baseline, eval_tokens.windows)

    def report(done: int) -> None:
        progress(f"evaluate {checkpoint.path.name}", done, count)

    begin = time.perf_counter()
    nll = window_losses(model, eval_tokens.windows, settings.batch, report, observe, ranks=ranks)
    agreement = None if agreement is None else agreement.filled(ranks)
    seconds = time.perf_counter() - begin
    perplexity, interval = perplexity_interval(nll, settings.level)
    config = checkpoint.config
    result: dict[str, Any] = {
        "model": str(checkpoint.path),
        "perplexity": perplexity,
        "ci": as_list(interval),
        "tokens": eval_tokens.windows.numel(),
        "windows": count,
        "window_nll": nll.tolist(),
        "tokens_per_second": eval_tokens.windows.numel() / seconds,
        "decode_tokens_per_second": None,
        "bytes_on_disk": checkpoint.bytes_on_disk,
        "scheme": checkpoint.scheme,
        "fake": bool(config and config.scheme and (config.fake or settings.fake)),
        "logits_dtype": str(model.dtype).removeprefix("torch."),
        **_agreement(agreement, count, settings),
    }
    if notes := checkpoint.notes(settings.seqlen):
        result["notes"] = notes
    if settings.decode and ranks.first:
        result["decode_tokens_per_second"] = decode_speed(model, eval_tokens.tokenizer, settings.decode)
    if baseline is not None and agreement is None:
        baseline.finish()
    return result, nll, baseline


def _agreement(agreement: WindowAgreement | None, windows: int, settings: PerplexitySettings) -> dict[str, Any]:
    """The keys on divergence from the baseline; the baseline itself (`agreement` None) agrees with itself."""
    if not settings.kl:
        return {"kl": None, "kl_ci": None, "window_kl": None, "top1": None}
    kl = agreement.kl if agreement else torch.zeros(windows, dtype=torch.float64)
    mean, interval = mean_interval(kl, settings.level)
    return {
        "kl": mean,
        "kl_ci": as_list(interval),
        "window_kl": kl.tolist(),
        "top1": float(agreement.top1.mean()) if agreement else 1.0,
    }


def protocol_of(text: str, eval_tokens: EvalTokens, settings: PerplexitySettings, dtype: str) -> dict[str, Any]:
    """What was measured, with an id: two numbers compare only when their ids are equal. text: its digest."""
    measured: dict[str, Any] = {
        "name": PROTOCOL,
        "text": text,
        "token_ids": eval_tokens.digest,
        "seqlen": settings.seqlen,
        "windows": len(eval_tokens.windows),
        "windows_in_text": eval_tokens.total // settings.seqlen,
        "bos": "once, at the start of the text" if eval_tokens.bos else "none",
        "logits_dtype": dtype,
        "loss_dtype": "float32",
    }
    # the same ids from differently written tokenizer files are the same measurement
    return {"id": f"{PROTOCOL}:{digest_json(measured)[:12]}", "tokenizer": eval_tokens.tokenizer_digest, **measured}
