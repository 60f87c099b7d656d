"""An engine for the tests of the protocol: its model is a JSON file that says how it behaves."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class FakeEngine:
    """Counts upwards. Losses are `loss`; every token takes `seconds`."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        self.behaviour: dict[str, Any] = json.loads(Path(path).read_text())
        self.facts_shown = {"version": "fake 1", "kernels": f"{threads} threads, {context} positions"}
        print("libraries print on stdout")
        if self.behaviour.get("refuses"):
            raise ValueError("this model\nis refused")

    def facts(self) -> dict[str, Any]:
        return self.facts_shown

    def prefill(self, ids: list[int]) -> int:
        if "dies" in self.behaviour and len(ids) >= self.behaviour["dies"]:
            sys.stderr.write("before\nout of some resource\n\n")
            sys.stderr.flush()
            os.abort()
        if "hangs" in self.behaviour and len(ids) >= self.behaviour["hangs"]:
            time.sleep(60)
        return self.step(ids[-1])

    def step(self, token: int) -> int:
        time.sleep(self.behaviour.get("seconds", 0.0))
        return self.behaviour.get("token", token + 1)  # type: ignore[no-any-return]

    def losses(self, ids: list[int]) -> list[float]:
        unlikely = self.behaviour.get("unlikely")
        return [9.0 if token == unlikely else self.behaviour.get("loss", 2.0) for token in ids[1:]]


ENGINE = FakeEngine
