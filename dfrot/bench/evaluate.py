"""`dfq bench evaluate`: the loss of a checkpoint over windows of text, by dfq's evaluation and by transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot.bench.clock import Timing, race
from dfrot.bench.machine import machine
from dfrot.bench.process_meters import PeakMemory
from dfrot.bench.settings import EvaluateBenchSettings
from dfrot.data.text import load_text
from dfrot.evaluate.ppl import window_losses
from dfrot.evaluate.tokens import WindowReader
from dfrot.progress import Progress, silent
from dfrot.runtime.load import load_model

DFQ, PLAIN = "dfq eval ppl", "transformers"


def bench_evaluate(model: Path, settings: EvaluateBenchSettings, progress: Progress = silent) -> dict[str, Any]:
    """Seconds, tokens per second, loss and peak memory of both ways, on the same loaded model and windows; JSON.

    `results[name]`: `seconds` (a Timing), `tokens_per_s`, `loss` (mean over windows), `peak_bytes` above the loaded
    model; `speedup`: transformers' median over dfq's. They take turns. model: a checkpoint folder.

    Raises InputError for a folder that cannot be loaded, or a text that is too short."""
    text = load_text(settings.dataset, "test")
    windows = WindowReader(text, settings.seqlen, settings.windows).read(model).windows
    loaded = load_model(model, settings.dtype)
    ways: dict[str, Callable[[], float]] = {
        DFQ: lambda: float(window_losses(loaded, windows, settings.batch).mean()),
        PLAIN: lambda: _plain_loss(loaded, windows, settings.batch),
    }
    losses, peaks = {}, {}
    for number, (name, way) in enumerate(ways.items()):  # dfq first: what the other leaves in the heap would hide it
        progress(f"memory of {name}", number, len(ways))
        with PeakMemory() as memory:
            losses[name] = way()
        peaks[name] = memory.bytes
    progress("time", 0, 1)
    times = race({name: [way] for name, way in ways.items()}, settings.repeats)
    return {
        "model": str(model),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "vocabulary": int(loaded.config.get_text_config().vocab_size),
        "dataset": {"name": text.name, "split": text.split, "digest": text.digest},
        "seqlen": settings.seqlen,
        "windows": len(windows),
        "batch": settings.batch,
        "results": {name: _result(times[name], windows, losses[name], peaks[name]) for name in ways},
        "speedup": times[PLAIN].median / times[DFQ].median,
        "machine": machine(),
    }


def _result(timing: Timing, windows: Tensor, loss: float, peak: int) -> dict[str, Any]:
    return {
        "seconds": timing.to_dict(),
        "tokens_per_s": windows.numel() / timing.median,
        "loss": loss,
        "peak_bytes": peak,
    }


@torch.inference_mode()
def _plain_loss(model: Any, windows: Tensor, batch: int) -> float:
    """Mean loss over windows int64 [n, seqlen], as transformers computes it from whole logits."""
    total = 0.0
    for tokens in torch.split(windows, batch):
        total += float(model(input_ids=tokens, labels=tokens, use_cache=False).loss) * len(tokens)
    return total / len(windows)
