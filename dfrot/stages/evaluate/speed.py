"""`dfq eval speed`: prefill, decoding and memory of checkpoints, in turns; decoding with a draft beside it."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dfrot.arch import describe
from dfrot.bench.clock import Timing
from dfrot.bench.machine import machine
from dfrot.bench.models import memory
from dfrot.bench.models.peer import time_turn
from dfrot.bench.models.runners import DfqRunner
from dfrot.bench.models.weight_traffic import ReadProbe, weight_bytes_per_token
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

    Returns {"kind", "settings", "machine", "read_bytes_per_second", "results", "draft"}: what the machine reads from
    memory, sampled in the same turns; per checkpoint seconds and tokens per second (medians) of prefill and decoding,
    bytes of weights that a decoded token reads and the share of its time that reading them at that rate would take
    (both None for mixtures of experts), bytes on disk and, if asked for, memory. draft: a draft of the last checkpoint,
    a folder or settings of look-up drafting; its acceptance and speed against plain decoding of the same prompts.
    Raises InputError when there is no checkpoint."""
    checkpoints = open_checkpoints(models)
    memories = [_memory(Path(model), settings, progress) if settings.memory else None for model in models]
    timed, read = _take_turns([Path(model) for model in models], settings, progress)
    results = [
        _result(checkpoint, settings, times, used, read)
        for checkpoint, times, used in zip(checkpoints, timed, memories)
    ]
    report = {
        "kind": KIND, "settings": asdict(settings), "machine": machine(), "read_bytes_per_second": read,
        "results": results, "draft": None,
    }  # fmt: skip
    if draft is not None:
        report["draft"] = _with_draft(Path(models[-1]), draft, settings, progress)
    return report


class _Times(NamedTuple):
    """Samples of one checkpoint."""

    prefill: list[float]
    """Seconds of each."""
    token: list[float]
    """Seconds per decoded token of each turn."""
    weight_bytes: int
    """Of the weights that a token is multiplied by."""


def _take_turns(models: Sequence[Path], settings: SpeedSettings, progress: Progress) -> tuple[list[_Times], float]:
    """The times of every checkpoint, the first turn, which only warms up, left out; bytes read per second beside
    them."""
    runners, probe = [DfqRunner(model) for model in models], ReadProbe()
    samples = [_Times([], [], weight_bytes_per_token(runner.model)) for runner in runners]
    rates = []
    turns = settings.repeats + 1
    for turn in range(turns):
        for number, runner in enumerate(runners):
            progress("time", turn * len(runners) + number, turns * len(runners))
            prefill, decode = time_turn(runner, settings.prefill, settings.decode)
            if turn:
                samples[number].prefill.append(prefill)
                samples[number].token.append(decode / settings.decode)
        rates.append(probe.sample())
    progress("time", turns * len(runners), turns * len(runners))
    return samples, statistics.median(rates)


def _result(
    checkpoint: EvaluatedCheckpoint,
    settings: SpeedSettings,
    times: _Times,
    memory_used: dict[str, Any] | None,
    read: float,
) -> dict[str, Any]:
    prefill, decode = Timing.of(times.prefill), Timing.of(times.token)
    is_mixture = describe(checkpoint.checkpoint.config).spec.experts is not None
    return {
        "model": str(checkpoint.path),
        "scheme": checkpoint.scheme,
        "prefill_tokens_per_second": settings.prefill / prefill.median,
        "decode_tokens_per_second": 1 / decode.median,
        "prefill": prefill.to_dict(),
        "decode": decode.to_dict(),
        "weight_bytes_per_token": None if is_mixture else times.weight_bytes,
        "read_share": None if is_mixture else times.weight_bytes / read / decode.median,
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
