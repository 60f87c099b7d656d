"""Counters in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
STATUS = Path("/proc/self/statm")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PAGE = 4096
_HELP = {
    "dfq_requests_total": ("counter", "Requests by path and status."),
    "dfq_generations_total": ("counter", "Generations by how they ended."),
    "dfq_prompt_tokens_total": ("counter", "Tokens of prompts that were read."),
    "dfq_generated_tokens_total": ("counter", "New tokens."),
    "dfq_draft_rounds_total": ("counter", "Passes that verified guesses of a draft."),
    "dfq_draft_accepted_total": ("counter", "Guesses that stood."),
    "dfq_requests_running": ("gauge", "Generations that take turns now."),
    "dfq_requests_waiting": ("gauge", "Requests in the queue."),
    "dfq_resident_bytes": ("gauge", "Resident memory of the process."),
    "dfq_first_token_seconds": ("histogram", "From the request to its first token, queue included."),
    "dfq_request_seconds": ("histogram", "From the request to its last token, queue included."),
}


class Metrics:
    """Thread-safe; `text` renders everything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._seen: dict[str, list[float]] = {}  # per histogram: buckets, then count and sum

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        key = (name, tuple(sorted(labels.items())))
        with self._lock:
            self._counts[key] = self._counts.get(key, 0.0) + value

    def observe(self, name: str, value: float) -> None:
        with self._lock:
            row = self._seen.setdefault(name, [0.0] * (len(BUCKETS) + 2))
            for place, most in enumerate(BUCKETS):
                row[place] += value <= most
            row[-2] += 1
            row[-1] += value

    def text(self, gauges: Mapping[str, float]) -> str:
        """gauges: values of now."""
        with self._lock:
            counts, seen = dict(self._counts), {name: list(row) for name, row in self._seen.items()}
        lines = []
        for name, (kind, told) in _HELP.items():
            lines += [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
            if kind == "histogram":
                row = seen.get(name, [0.0] * (len(BUCKETS) + 2))
                lines += [f'{name}_bucket{{le="{most:g}"}} {row[place]:g}' for place, most in enumerate(BUCKETS)]
                lines += [
                    f'{name}_bucket{{le="+Inf"}} {row[-2]:g}',
                    f"{name}_sum {row[-1]!r}",
                    f"{name}_count {row[-2]:g}",
                ]
            elif kind == "gauge":
                lines.append(f"{name} {gauges.get(name, 0):.0f}")
            else:
                found = [(labels, value) for (one, labels), value in counts.items() if one == name]
                lines += [f"{name}{_labels(labels)} {value:.0f}" for labels, value in sorted(found)] or [f"{name} 0"]
        return "\n".join(lines) + "\n"


def resident() -> int:
    """Resident bytes of this process; 0 where the system does not say."""
    return int(STATUS.read_text(encoding="ascii").split()[1]) * _PAGE if STATUS.is_file() else 0


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{inside}}}" if inside else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
