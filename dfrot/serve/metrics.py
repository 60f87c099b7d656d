"""Metrics in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # upper bounds in seconds
STATUS = Path("/proc/self/statm")  # of this process: its second number is the resident pages
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PAGE = 4096  # bytes
_HELP = {
    "dfq_requests_total": ("counter", "Requests by path and status."),
    "dfq_generations_total": ("counter", "Generations by outcome."),
    "dfq_prompt_tokens_total": ("counter", "Prompt tokens."),
    "dfq_shared_prompt_tokens_total": ("counter", "Prompt tokens that had been computed for other requests."),
    "dfq_generated_tokens_total": ("counter", "New tokens."),
    "dfq_draft_rounds_total": ("counter", "Verify passes."),
    "dfq_draft_accepted_total": ("counter", "Accepted draft tokens."),
    "dfq_requests_running": ("gauge", "Generations that are served now."),
    "dfq_requests_waiting": ("gauge", "Requests in the queue."),
    "dfq_batching": ("gauge", "1 where requests share steps, 0 where they take turns."),
    "dfq_batch_steps": ("gauge", "Steps of the batch since the start."),
    "dfq_batch_rows": ("gauge", "Tokens that these steps computed."),
    "dfq_cache_bytes": ("gauge", "Reserved for the caches of the batch."),
    "dfq_prefix_bytes": ("gauge", "Beginnings of prompts that are kept."),
    "dfq_resident_bytes": ("gauge", "Resident memory of the process."),
    "dfq_first_token_seconds": ("histogram", "From the request to its first token, queue included."),
    "dfq_request_seconds": ("histogram", "From the request to its last token, queue included."),
}


class Metrics:
    """Counters and histograms; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._histograms: dict[str, list[float]] = {}  # counts per bucket, then all observations and their sum

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Increase a counter."""
        key = (name, tuple(sorted(labels.items())))
        with self._lock:
            self._counts[key] = self._counts.get(key, 0.0) + value

    def observe(self, name: str, value: float) -> None:
        """Add an observation to a histogram."""
        with self._lock:
            row = self._histograms.setdefault(name, [0.0] * (len(BUCKETS) + 2))
            for bucket, bound in enumerate(BUCKETS):
                row[bucket] += value <= bound
            row[-2] += 1
            row[-1] += value

    def text(self, gauges: Mapping[str, float]) -> str:
        """Everything in Prometheus' format. gauges: present values by name."""
        with self._lock:
            counts = dict(self._counts)
            histograms = {name: list(row) for name, row in self._histograms.items()}
        lines = []
        for name, (kind, description) in _HELP.items():
            lines += [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]
            if kind == "histogram":
                lines += _histogram_lines(name, histograms.get(name, [0.0] * (len(BUCKETS) + 2)))
            elif kind == "gauge":
                lines.append(f"{name} {gauges.get(name, 0):.0f}")
            else:
                values = sorted((labels, value) for (counter, labels), value in counts.items() if counter == name)
                lines += [f"{name}{_labels(labels)} {value:.0f}" for labels, value in values] or [f"{name} 0"]
        return "\n".join(lines) + "\n"


def _histogram_lines(name: str, row: list[float]) -> list[str]:
    buckets = [f'{name}_bucket{{le="{bound:g}"}} {row[bucket]:g}' for bucket, bound in enumerate(BUCKETS)]
    total = f'{name}_bucket{{le="+Inf"}} {row[-2]:g}'
    return [*buckets, total, f"{name}_sum {row[-1]!r}", f"{name}_count {row[-2]:g}"]


def resident() -> int:
    """Resident memory of this process in bytes; 0 where the system does not tell."""
    return int(STATUS.read_text(encoding="ascii").split()[1]) * _PAGE if STATUS.is_file() else 0


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{inside}}}" if inside else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
