"""Peak memory of a runner in a process of its own."""

from __future__ import annotations

import importlib
import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfrot.bench.models.peer import LlamaCpp, Runner
from dfrot.errors import GateError
from dfrot.files import read_json, write_json

STATUS = Path("/proc/self/status")


def high_water() -> dict[str, int]:
    """Resident bytes of this process: `peak` since it started, `now`. Empty where the system does not say."""
    if not STATUS.is_file():
        return {}
    text = STATUS.read_text(encoding="ascii", errors="replace")
    found = {name: re.search(rf"^{key}:\s+(\d+) kB", text, re.M) for name, key in (("peak", "VmHWM"), ("now", "VmRSS"))}
    return {name: int(match[1]) << 10 for name, match in found.items() if match}


def measure(kind: str, path: Path, out: Path, *, threads: int, prefill: int, decode: int) -> dict[str, Any]:
    """Load `path` in a fresh process, prefill and decode once, JSON: `imported` (resident bytes when the libraries
    are in and nothing is loaded), `peak`, and `model` = their difference. Written to `out` on the way."""
    process = multiprocessing.get_context("spawn").Process(
        target=_child, args=(kind, str(path), str(out), threads, prefill, decode)
    )
    process.start()
    process.join()
    if process.exitcode != 0 or not out.is_file():
        raise GateError(f"{path}: the process that measures memory ended with code {process.exitcode}")
    return dict(read_json(out))


def _dfq(path: str, threads: int) -> Callable[[], Runner]:
    import torch

    from dfrot.bench.models.runners import DfqRunner
    from dfrot.runtime.block_runner import hf_config

    torch.set_num_threads(threads)
    hf_config(read_json(Path(path) / "config.json"), torch.float32)  # transformers imports lazily: let it do so now
    return lambda: DfqRunner(Path(path))


def _peer(path: str, threads: int, context: int) -> Callable[[], Runner]:
    importlib.import_module("llama_cpp")
    return lambda: LlamaCpp(Path(path), threads, context)


def _child(kind: str, path: str, out: str, threads: int, prefill: int, decode: int) -> None:
    load = _dfq(path, threads) if kind == "dfq" else _peer(path, threads, prefill + decode)
    imported = high_water()
    runner = load()
    loaded = high_water()
    runner.prefill(prefill)
    runner.start()
    runner.decode(decode)
    after = high_water()
    if imported and after:
        report = {"imported": imported["now"], "loaded": loaded["now"], "peak": after["peak"]}
        report["model"] = report["peak"] - report["imported"]
        write_json(Path(out), report)
    else:
        write_json(Path(out), {})
