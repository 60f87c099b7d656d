"""`dfq bench generate`: prefill and decoding of a whole model at batch 1, beside llama.cpp in the same run."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dfrot.arch import describe
from dfrot.bench.clock import Timing
from dfrot.bench.machine import machine
from dfrot.bench.models import gguf_file, memory
from dfrot.bench.models.peer import PREFIX, LlamaCpp, Runner, one_turn
from dfrot.bench.models.presets import preset
from dfrot.bench.models.random_model import random_checkpoint
from dfrot.bench.models.runners import DfqRunner
from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError, ResourceError
from dfrot.stage_folder import Progress, silent

SCHEMES = ("w4a16kv16", "w4a8kv4", "w4a4kv4")
PEER = "llama.cpp Q4_0"


def have_llama_cpp() -> bool:
    """Whether the peer and the writer of its files are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("llama_cpp", "gguf"))


def bench_generate(
    shape: str = "1.1b",
    schemes: Sequence[str] = SCHEMES,
    *,
    model: Path | None = None,
    prefill: int = 512,
    decode: int = 32,
    repeats: int = 3,
    peer: bool | None = None,
    with_memory: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Tokens per second at batch 1, JSON: `results[name]` = seconds of a prefill of `prefill` tokens and of one of
    `decode` greedy tokens behind a prompt of 32, rates, ratios to llama.cpp, peak memory (in processes of their own).

    shape: one of presets.PRESETS, with random packed weights in each of `schemes`; model: a checkpoint instead, whose
    sizes llama.cpp gets. peer: None means llama.cpp where installed; True demands it. Everything runs in turns in
    this process with torch's number of threads.
    """
    if peer and not have_llama_cpp():
        raise ResourceError("llama-cpp-python and gguf are not installed: pip install 'dfq[bench]'")
    if prefill < 1 or decode < 1 or repeats < 1:
        raise InputError("prefill, decode and repeats must be at least 1")
    with tempfile.TemporaryDirectory(prefix="dfq-bench-") as temporary:
        folder = Path(temporary)
        config = dict(Checkpoint.open(model).config) if model is not None else preset(shape)
        paths = _models(folder, model, config, schemes, seed, progress)
        if have_llama_cpp() if peer is None else peer:
            progress("write", len(paths), len(paths) + 1)
            paths[PEER] = ("llama.cpp", gguf_file.write(folder / "peer.gguf", describe(config), seed))
        used: dict[str, Any] = {}
        for done, (name, (kind, path)) in enumerate(paths.items() if with_memory else ()):
            progress("memory", done, len(paths))
            used[name] = memory.measure(kind, path, folder / f"memory-{done}.json", threads=torch.get_num_threads(),
                                        prefill=prefill, decode=decode)  # fmt: skip
        times = _race(paths, prefill, decode, repeats, progress)
    results = {name: {**times[name], "memory": used.get(name)} for name in paths}
    _compare(results)
    sizes = {"prefill": prefill, "decode": decode, "prompt": PREFIX, "repeats": repeats, "seed": seed}
    return {"shape": None if model else shape, "model": str(model) if model else None, **sizes, "results": results,
            "machine": machine()}  # fmt: skip


def _models(
    folder: Path, model: Path | None, config: dict[str, Any], schemes: Sequence[str], seed: int, progress: Progress
) -> dict[str, tuple[str, Path]]:
    """name -> (kind of runner, path)"""
    if model is not None:
        return {model.name: ("dfq", model)}
    found = {}
    for done, scheme in enumerate(schemes):
        progress("write", done, len(schemes) + 1)
        found[scheme] = ("dfq", random_checkpoint(folder / scheme, config, scheme, seed))
    return found


def _open(kind: str, path: Path, context: int) -> Runner:
    return DfqRunner(path) if kind == "dfq" else LlamaCpp(path, torch.get_num_threads(), context)


def _race(
    paths: dict[str, tuple[str, Path]], prefill: int, decode: int, repeats: int, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Everything loaded at once, then turns."""
    runners = {name: _open(kind, path, max(prefill, PREFIX) + decode) for name, (kind, path) in paths.items()}
    samples: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runners}
    for turn in range(repeats + 1):
        for runner_index, (name, runner) in enumerate(runners.items()):
            progress("time", turn * len(runners) + runner_index, (repeats + 1) * len(runners))
            found = one_turn(runner, prefill, decode if turn else 2)
            if turn:  # the first turn warms up
                samples[name][0].append(found[0])
                samples[name][1].append(found[1] / decode)
    report = {}
    for name, (whole, each) in samples.items():
        first, step = Timing.of(whole), Timing.of(each)
        report[name] = {
            "prefill": first.to_dict(),
            "decode": step.to_dict(),
            "prefill_per_s": prefill / first.median,
            "decode_per_s": 1 / step.median,
        }
    return report


def _compare(results: dict[str, dict[str, Any]]) -> None:
    """Ratios to the peer, where there is one: above 1 is faster, or more memory."""
    peer = results.get(PEER)
    for name, one in results.items():
        if peer is None or name == PEER:
            continue
        ratios: dict[str, float] = {}
        for part in ("prefill", "decode"):
            ratios[part] = peer[part]["median"] / one[part]["median"]
            ratios[f"{part}_best"] = peer[part]["best"] / one[part]["best"]
        for part in ("peak", "model"):
            if one["memory"] and peer["memory"]:
                ratios[f"{part}_memory"] = one["memory"][part] / peer["memory"][part]
        one["ratio"] = ratios
