"""`dfq bench generate`: prefill and decoding of a whole model at batch 1, beside llama.cpp in the same run."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dfrot.arch import describe
from dfrot.bench.clock import Timing
from dfrot.bench.machine import machine
from dfrot.bench.models.gguf_file import write_random_gguf
from dfrot.bench.models.memory import measure_memory
from dfrot.bench.models.peer import PREFIX, LlamaCpp, Runner, time_turn
from dfrot.bench.models.presets import preset
from dfrot.bench.models.random_model import random_checkpoint
from dfrot.bench.models.runners import DfqRunner
from dfrot.bench.settings import GenerateBenchSettings
from dfrot.errors import InputError, ResourceError
from dfrot.inputs import open_model
from dfrot.progress import Progress, silent

PEER = "llama.cpp Q4_0"
WARM_UP_DECODE = 2  # tokens decoded in the first turn, which is not counted


@dataclass(frozen=True)
class TimedModel:
    """A model to time."""

    kind: str
    """What runs it: `dfq` or `llama.cpp`."""
    path: Path
    """Checkpoint folder, or GGUF file."""

    def open(self, context: int) -> Runner:
        """Load it for `context` positions."""
        return DfqRunner(self.path) if self.kind == "dfq" else LlamaCpp(self.path, torch.get_num_threads(), context)


def have_llama_cpp() -> bool:
    """Whether the peer and the writer of its files are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("llama_cpp", "gguf"))


def bench_generate(
    shape: str = GenerateBenchSettings.shape,
    schemes: Sequence[str] = GenerateBenchSettings.schemes,
    *,
    model: Path | None = None,
    prefill: int = GenerateBenchSettings.prefill,
    decode: int = GenerateBenchSettings.decode,
    repeats: int = GenerateBenchSettings.repeats,
    peer: bool | None = GenerateBenchSettings.peer,
    with_memory: bool = GenerateBenchSettings.with_memory,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Tokens per second at batch 1; JSON.

    `results[name]`: seconds of a prefill and of a decoded token, rates, `ratio` to llama.cpp, peak `memory` (each in a
    process of its own). All models are loaded at once and timed in turns in this process, with torch's number of
    threads.

    Args:
        shape: one of presets.PRESETS, with random packed weights.
        schemes: of the random models.
        model: a checkpoint to time instead; llama.cpp gets random weights of the same sizes.
        prefill: tokens of the timed prompt.
        decode: greedy tokens behind a prompt of 32.
        repeats: samples.
        peer: None means llama.cpp where installed; True demands it.
        with_memory: measure peak memory.
        seed: of the random weights.

    Raises ResourceError for a demanded peer that is not installed.
    """
    if peer and not have_llama_cpp():
        raise ResourceError("llama-cpp-python and gguf are not installed: pip install 'dfq[bench]'", field="peer")
    if prefill < 1 or decode < 1 or repeats < 1:
        fields = ("prefill", "decode", "repeats")
        raise InputError("`prefill`, `decode` and `repeats` must be at least 1", field=fields, limit=1)
    with tempfile.TemporaryDirectory(prefix="dfq-bench-") as temporary:
        folder = Path(temporary)
        config = dict(open_model(model).config) if model is not None else preset(shape)
        contenders = _contenders(folder, model, config, schemes, seed, progress)
        if have_llama_cpp() if peer is None else peer:
            progress("write", len(contenders), len(contenders) + 1)
            file = write_random_gguf(folder / "peer.gguf", describe(config), seed)
            contenders[PEER] = TimedModel("llama.cpp", file)
        memory = _memory(folder, contenders, prefill, decode, progress) if with_memory else {}
        times = _time_in_turns(contenders, prefill, decode, repeats, progress)
    results = {name: {**times[name], "memory": memory.get(name)} for name in contenders}
    _add_ratios(results)
    sizes = {"prefill": prefill, "decode": decode, "prompt": PREFIX, "repeats": repeats, "seed": seed}
    return {
        "shape": None if model else shape,
        "model": str(model) if model else None,
        **sizes,
        "results": results,
        "machine": machine(),
    }


def _contenders(
    folder: Path, model: Path | None, config: dict[str, Any], schemes: Sequence[str], seed: int, progress: Progress
) -> dict[str, TimedModel]:
    """dfq's models by name: `model`, or one of random weights per scheme, written into `folder`."""
    if model is not None:
        return {model.name: TimedModel("dfq", model)}
    contenders = {}
    for done, scheme in enumerate(schemes):
        progress("write", done, len(schemes) + 1)
        contenders[scheme] = TimedModel("dfq", random_checkpoint(folder / scheme, config, scheme, seed))
    return contenders


def _memory(
    folder: Path, contenders: dict[str, TimedModel], prefill: int, decode: int, progress: Progress
) -> dict[str, dict[str, Any]]:
    """What `measure_memory` finds of each contender."""
    memory = {}
    for done, (name, contender) in enumerate(contenders.items()):
        progress("memory", done, len(contenders))
        out, threads = folder / f"memory-{done}.json", torch.get_num_threads()
        memory[name] = measure_memory(
            contender.kind, contender.path, out, threads=threads, prefill=prefill, decode=decode
        )
    return memory


def _time_in_turns(
    contenders: dict[str, TimedModel], prefill: int, decode: int, repeats: int, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Load everything, then time in turns; the first turn warms up."""
    context = max(prefill, PREFIX) + decode
    runners = {name: contender.open(context) for name, contender in contenders.items()}
    samples: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runners}
    for turn in range(repeats + 1):
        for index, (name, runner) in enumerate(runners.items()):
            progress("time", turn * len(runners) + index, (repeats + 1) * len(runners))
            prefill_seconds, decode_seconds = time_turn(runner, prefill, decode if turn else WARM_UP_DECODE)
            if turn:
                samples[name][0].append(prefill_seconds)
                samples[name][1].append(decode_seconds / decode)
    report = {}
    for name, (prefills, steps) in samples.items():
        prefill_time, step_time = Timing.of(prefills), Timing.of(steps)
        report[name] = {
            "prefill": prefill_time.to_dict(),
            "decode": step_time.to_dict(),
            "prefill_per_s": prefill / prefill_time.median,
            "decode_per_s": 1 / step_time.median,
        }
    return report


def _add_ratios(results: dict[str, dict[str, Any]]) -> None:
    """Add ratios to the peer, where there is one: above 1 is faster, or more memory."""
    peer = results.get(PEER)
    for name, result in results.items():
        if peer is None or name == PEER:
            continue
        ratios: dict[str, float] = {}
        for part in ("prefill", "decode"):
            ratios[part] = peer[part]["median"] / result[part]["median"]
            ratios[f"{part}_best"] = peer[part]["best"] / result[part]["best"]
        for part in ("peak", "model"):
            if result["memory"] and peer["memory"]:
                ratios[f"{part}_memory"] = result["memory"][part] / peer["memory"][part]
        result["ratio"] = ratios
