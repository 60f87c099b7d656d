"""`dfq eval speed`: prefill, decoding and memory of checkpoints, in turns; decoding with a draft beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dfrot.bench.clock import Timing
from dfrot.bench.machine import machine
from dfrot.bench.models import memory
from dfrot.bench.models.peer import time_turn
from dfrot.bench.models.runners import DfqRunner
from dfrot.errors import InputError
from dfrot.runtime.load import check_folder
from dfrot.stage_folder import Progress, silent
from dfrot.stages.draft import evaluate as draft_eval

KIND = "eval speed"


@dataclass(frozen=True)
class SpeedSettings:
    """prefill: tokens of the prompt that is timed; decode: greedy tokens behind a prompt of 32; repeats: turns behind
    a first one that warms up. memory: peak of each checkpoint in a process of its own. prompts: held-out starts of
    `dataset` that are decoded plainly and with the draft; shapes: of its guesses."""

    prefill: int = 512
    decode: int = 64
    repeats: int = 5
    memory: bool = True
    dataset: str = "stdlib"
    prompts: int = 6
    shapes: tuple[tuple[int, int, int], ...] = ((3, 1, 0),)

    def __post_init__(self) -> None:
        for name in ("prefill", "decode", "repeats", "prompts"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: at least 1 is needed")


def speed(
    models: Sequence[Path], settings: SpeedSettings, draft: Path | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """{"kind", "settings", "machine", "results"}: per checkpoint seconds and tokens per second (medians) of prefill
    and decoding at batch 1, bytes on disk and, if asked, memory. All are loaded at once and take turns, so that a
    machine that slows down favours none.

    draft: of the last checkpoint; adds "draft": acceptance and speed against plain decoding of the same prompts."""
    if not models:
        raise InputError("no checkpoint to measure; give --model")
    checked = [check_folder(Path(model)) for model in models]
    used = [_memory(Path(model), settings, progress) if settings.memory else None for model in models]
    runners = [DfqRunner(Path(model)) for model in models]
    samples: list[tuple[list[float], list[float]]] = [([], []) for _ in models]
    turns = settings.repeats + 1
    for turn in range(turns):
        for number, runner in enumerate(runners):
            progress("time", turn * len(runners) + number, turns * len(runners))
            found = time_turn(runner, settings.prefill, settings.decode)
            if turn:
                samples[number][0].append(found[0])
                samples[number][1].append(found[1] / settings.decode)
    progress("time", turns * len(runners), turns * len(runners))
    results = []
    for (checkpoint, config), (whole, each), peak in zip(checked, samples, used):
        first, step = Timing.of(whole), Timing.of(each)
        files = {entry.file for entry in checkpoint.entries.values()}
        results.append(
            {
                "model": str(checkpoint.path),
                "scheme": config.scheme.name if config is not None and config.scheme is not None else None,
                "prefill_tokens_per_second": settings.prefill / first.median,
                "decode_tokens_per_second": 1 / step.median,
                "prefill": first.to_dict(),
                "decode": step.to_dict(),
                "memory": peak,
                "bytes_on_disk": sum(file.stat().st_size for file in files),
            }
        )
    report = {"kind": KIND, "settings": asdict(settings), "machine": machine(), "results": results, "draft": None}
    if draft is not None:
        del runners
        report["draft"] = _drafted(Path(models[-1]), draft, settings, progress)
    return report


def _memory(model: Path, settings: SpeedSettings, progress: Progress) -> dict[str, Any]:
    progress(f"memory of {model.name}", 0, 1)
    with tempfile.TemporaryDirectory(prefix="dfq-speed-") as folder:
        out = Path(folder) / "memory.json"
        threads = torch.get_num_threads()
        return memory.measure_memory(
            "dfq", model, out, threads=threads, prefill=settings.prefill, decode=settings.decode
        )


def _drafted(model: Path, draft: Path, settings: SpeedSettings, progress: Progress) -> dict[str, Any]:
    wanted = draft_eval.DraftEvalSettings(
        dataset=settings.dataset, prompts=settings.prompts, max_new_tokens=settings.decode, shapes=settings.shapes
    )
    return draft_eval.evaluate(model, draft, wanted, progress)
