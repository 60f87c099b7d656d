"""`dfq eval speed`: prefill, decoding and memory of checkpoints, in turns; decoding with a draft beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dfrot.bench.clock import Timing
from dfrot.bench.machine import machine
from dfrot.bench.models import memory
from dfrot.bench.models.peer import time_turn
from dfrot.bench.models.runners import DfqRunner
from dfrot.generation.settings import NgramSettings
from dfrot.progress import Progress, silent
from dfrot.stages.draft import evaluate as draft_eval
from dfrot.stages.draft.settings import DraftEvalSettings
from dfrot.stages.evaluate.inputs import EvaluatedCheckpoint, open_checkpoints
from dfrot.stages.evaluate.settings import SpeedSettings

KIND = "eval speed"


def speed(
    models: Sequence[Path],
    settings: SpeedSettings,
    draft: Path | NgramSettings | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure checkpoints at batch 1. All are loaded at once and take turns, so that a machine that slows down favours
    none.

    Returns {"kind", "settings", "machine", "results", "draft"}: per checkpoint seconds and tokens per second (medians)
    of prefill and decoding, bytes on disk and, if asked for, memory. draft: a draft of the last checkpoint, a folder or
    settings of look-up drafting; its acceptance and speed against plain decoding of the same prompts. Raises InputError
    when there is no checkpoint."""
    checkpoints = open_checkpoints(models)
    memories = [_memory(Path(model), settings, progress) if settings.memory else None for model in models]
    seconds = _take_turns([Path(model) for model in models], settings, progress)
    results = [
        _result(checkpoint, settings, *timed, used) for checkpoint, timed, used in zip(checkpoints, seconds, memories)
    ]
    report = {"kind": KIND, "settings": asdict(settings), "machine": machine(), "results": results, "draft": None}
    if draft is not None:
        report["draft"] = _with_draft(Path(models[-1]), draft, settings, progress)
    return report


def _take_turns(
    models: Sequence[Path], settings: SpeedSettings, progress: Progress
) -> list[tuple[list[float], list[float]]]:
    """Per checkpoint the seconds of every prefill, and of every decoded token; the first turn only warms up."""
    runners = [DfqRunner(model) for model in models]
    samples: list[tuple[list[float], list[float]]] = [([], []) for _ in models]
    turns = settings.repeats + 1
    for turn in range(turns):
        for number, runner in enumerate(runners):
            progress("time", turn * len(runners) + number, turns * len(runners))
            prefill, decode = time_turn(runner, settings.prefill, settings.decode)
            if turn:
                samples[number][0].append(prefill)
                samples[number][1].append(decode / settings.decode)
    progress("time", turns * len(runners), turns * len(runners))
    return samples


def _result(
    checkpoint: EvaluatedCheckpoint,
    settings: SpeedSettings,
    prefill_seconds: list[float],
    token_seconds: list[float],
    memory_used: dict[str, Any] | None,
) -> dict[str, Any]:
    prefill, decode = Timing.of(prefill_seconds), Timing.of(token_seconds)
    return {
        "model": str(checkpoint.path),
        "scheme": checkpoint.scheme,
        "prefill_tokens_per_second": settings.prefill / prefill.median,
        "decode_tokens_per_second": 1 / decode.median,
        "prefill": prefill.to_dict(),
        "decode": decode.to_dict(),
        "memory": memory_used,
        "bytes_on_disk": checkpoint.bytes_on_disk,
    }


def _memory(model: Path, settings: SpeedSettings, progress: Progress) -> dict[str, Any]:
    """Peak memory of a checkpoint, measured in a process of its own."""
    progress(f"memory of {model.name}", 0, 1)
    with tempfile.TemporaryDirectory(prefix="dfq-speed-") as folder:
        out = Path(folder) / "memory.json"
        threads = torch.get_num_threads()
        return memory.measure_memory(
            "dfq", model, out, threads=threads, prefill=settings.prefill, decode=settings.decode
        )


def _with_draft(
    model: Path, draft: Path | NgramSettings, settings: SpeedSettings, progress: Progress
) -> dict[str, Any]:
    """The report of `dfq draft eval` on the same number of new tokens."""
    draft_settings = DraftEvalSettings(
        dataset=settings.dataset, prompts=settings.prompts, max_new_tokens=settings.decode, shapes=settings.shapes
    )
    return draft_eval.evaluate(model, [draft], draft_settings, progress)
