"""The process of one contender: `python loop.py ENGINE CPUS`, JSON lines in and out.

ENGINE is a file beside this one, whose `ENGINE` is a class; CPUS are the processors that the process may use,
`0,1`. A request is one line, its answer another:

    {"op": "load", "path": .., "threads": 2, "context": 4200}    -> {"seconds": .., "facts": {..}}
    {"op": "generate", "ids": [..], "count": n}                  -> {"first": s, "decode": s, "tokens": [1 + n ids]}
    {"op": "loss", "ids": [..], "first": 1}                      -> {"loss": mean nats of ids[first:], "count": ..}
    {"op": "memory"}                                             -> {"peak": bytes, "pss": bytes, "pss_file": bytes}
    {"op": "quit"}                                               -> {}

Anything that goes wrong answers {"error": one line}. What libraries print goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, TextIO


def _generate(engine: Any, ids: list[int], count: int) -> dict[str, Any]:
    """Seconds until the first token behind `ids`, and of the `count` greedy tokens behind that one."""
    if hasattr(engine, "generate"):
        first, decode, tokens = engine.generate(ids, count)
        return {"first": first, "decode": decode, "tokens": tokens}
    begin = time.perf_counter()
    tokens = [int(engine.prefill(ids))]
    middle = time.perf_counter()
    for _ in range(count):
        tokens.append(int(engine.step(tokens[-1])))
    return {"first": middle - begin, "decode": time.perf_counter() - middle, "tokens": tokens}


def _loss(engine: Any, ids: list[int], first: int) -> dict[str, Any]:
    """Mean negative log-likelihood of ids[first:], each behind all before it."""
    if hasattr(engine, "losses"):
        losses = engine.losses(ids)
    else:
        losses = [_surprise(row, target) for row, target in zip(engine.logits(ids), ids[1:])]
    wanted = [float(value) for value in losses][first - 1 :]
    return {"loss": sum(wanted) / len(wanted), "count": len(wanted)}


def _surprise(row: Any, target: int) -> float:
    """-log softmax(row)[target]."""
    import numpy as np

    values = np.asarray(row, dtype=np.float64)
    top = values.max()
    return float(top + np.log(np.exp(values - top).sum()) - values[target])


def _memory() -> dict[str, int]:
    """Bytes of this process: the highest resident size, and its proportional share now, of which mapped files."""
    answer = {}
    for file, keys in (
        ("/proc/self/status", {"peak": "VmHWM"}),
        ("/proc/self/smaps_rollup", {"pss": "Pss", "pss_file": "Pss_File"}),
    ):
        try:
            text = Path(file).read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        for name, key in keys.items():
            if match := re.search(rf"^{key}:\s+(\d+) kB", text, re.M):
                answer[name] = int(match[1]) << 10
    return answer


class Loop:
    """Answers requests with one engine."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.engine: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        op = request["op"]
        if op == "load":
            begin = time.perf_counter()
            module = importlib.import_module(self.name)
            imported = time.perf_counter()
            self.engine = module.ENGINE(request["path"], request["threads"], request["context"])
            seconds = time.perf_counter() - imported
            return {"seconds": seconds, "import": imported - begin, "facts": self.engine.facts()}
        if op == "generate":
            return _generate(self.engine, request["ids"], request["count"])
        if op == "loss":
            return _loss(self.engine, request["ids"], request.get("first", 1))
        return _memory() if op == "memory" else {}


def serve(requests: TextIO, answers: TextIO, name: str) -> None:
    """Answer every line of `requests` in `answers`, until one asks to quit."""
    loop = Loop(name)
    for line in requests:
        request = json.loads(line)
        try:
            answer = loop.answer(request)
        except BaseException as error:
            text = " ".join(str(error).split())
            answer = {"error": f"{type(error).__name__}: {text[:400]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if request["op"] == "quit":
            return


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(cpu) for cpu in sys.argv[2].split(",")])
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print
    serve(sys.stdin, channel, sys.argv[1])
