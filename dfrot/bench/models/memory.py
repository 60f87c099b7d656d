"""Peak memory of a runner in a process of its own."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfrot.bench.models.peer import LlamaCpp, Runner
from dfrot.bench.process_meters import resident_memory
from dfrot.errors import GateError
from dfrot.files import read_json, write_json


def measure_memory(kind: str, path: Path, out: Path, *, threads: int, prefill: int, decode: int) -> dict[str, Any]:
    """Resident memory of a model that is loaded in a fresh process, prefills and decodes once; JSON, in bytes.

    Keys: `imported` (libraries imported, nothing loaded), `loaded`, `peak`, `model` = peak - imported; empty where the
    system does not report them. kind: `dfq` or `llama.cpp`; path: checkpoint folder or GGUF file; out: a file for the
    result of the process. Raises GateError when the process fails."""
    process = multiprocessing.get_context("spawn").Process(
        target=_child, args=(kind, str(path), str(out), threads, prefill, decode)
    )
    process.start()
    process.join()
    if process.exitcode != 0 or not out.is_file():
        raise GateError(f"{path}: the process that measures memory ended with code {process.exitcode}")
    return dict(read_json(out))


def _dfq_loader(path: str, threads: int) -> Callable[[], Runner]:
    """Import everything; returns a function that loads the checkpoint."""
    import torch

    from dfrot.bench.models.runners import DfqRunner
    from dfrot.runtime.block_runner import hf_config

    torch.set_num_threads(threads)
    # transformers imports lazily: load its modules now, so that they count as imported
    hf_config(read_json(Path(path) / "config.json"), torch.float32)
    return lambda: DfqRunner(Path(path))


def _llama_cpp_loader(path: str, threads: int, context: int) -> Callable[[], Runner]:
    """Import everything; returns a function that loads the GGUF file."""
    importlib.import_module("llama_cpp")
    return lambda: LlamaCpp(Path(path), threads, context)


def _child(kind: str, path: str, out: str, threads: int, prefill: int, decode: int) -> None:
    """Runs in the fresh process."""
    load = _dfq_loader(path, threads) if kind == "dfq" else _llama_cpp_loader(path, threads, prefill + decode)
    imported = resident_memory()
    runner = load()
    loaded = resident_memory()
    runner.prefill(prefill)
    runner.start()
    runner.decode(decode)
    after = resident_memory()
    if imported and after:
        report = {"imported": imported["now"], "loaded": loaded["now"], "peak": after["peak"]}
        report["model"] = report["peak"] - report["imported"]
        write_json(Path(out), report)
    else:
        write_json(Path(out), {})
