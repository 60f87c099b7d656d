"""Massive activations: detected in the residual stream, followed from where they appear to where they end.

States of the stream are named after what wrote them: the embedding, then every linear that writes to the stream. An
entry is one (window, position, channel). Once an entry was massive at some state, its value is followed at every later
state; entries are summarised per channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dfrot.outliers.measure.criteria import Criteria, massive_entries, median_magnitude

MAX_TRACES = 256  # entries followed; more are only counted
MAX_COUNTED = 1 << 20  # entries counted per window and state
ENDED = 0.5  # an entry ends where less than this share of its largest value is left
MAX_TOKENS, MAX_POSITIONS = 16, 32  # reported per channel

Entry = tuple[int, int, int]
"""(window, position, channel)"""


@dataclass
class Trace:
    """An entry and its values from the state where it was first massive."""

    entry: Entry
    """Where it is."""
    token: int
    """The token id at its position."""
    created: int
    """Index of the state where it was first massive."""
    values: list[float] = field(default_factory=list)
    """Its value at that state and every later one."""


class MassiveTracker:
    """Detects massive entries and follows them. Feed it the states of the stream, in order for each window."""

    def __init__(self, criteria: Criteria, tokens: Tensor) -> None:
        """tokens int64 [windows, S]."""
        self.criteria, self.tokens = criteria, tokens
        self.names: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.traces: dict[Entry, Trace] = {}

    def begin(self, name: str) -> None:
        """Begin a state: `model.embed_tokens`, or the full name of a writer."""
        self.names.append(name)
        self.rows.append({"state": name, "median": 0.0, "max": 0.0, "count": 0, "channels": set(), "at": None})

    def add(self, window: int, hidden: Tensor, state: int = -1) -> list[Trace]:
        """Add one window's stream [S, hidden] at a state that was begun; returns the entries that are massive here for
        the first time. state: its index; negative ones count from the last. A window's states come in order."""
        row, state = self.rows[state], state % len(self.names)
        median = float(median_magnitude(hidden))
        massive = massive_entries(hidden, self.criteria.limit(hidden), MAX_COUNTED)
        row["median"] += median / len(self.tokens)
        row["count"] += len(massive)
        row["channels"].update(massive[:, 1].tolist())
        position, channel = divmod(int(hidden.abs().argmax()), hidden.shape[1])
        value = float(hidden[position, channel])
        if abs(value) >= abs(row["max"]):
            row["max"], row["ratio"] = value, abs(value) / max(median, 1e-30)
            row["at"] = {"window": window, "position": position, "channel": channel}
        created: list[Trace] = []
        for position, channel in massive[:MAX_TRACES].tolist():
            entry = (window, position, channel)
            if entry not in self.traces and len(self.traces) < MAX_TRACES:
                trace = Trace(entry, int(self.tokens[window, position]), state)
                self.traces[entry] = trace
                created.append(trace)
        for trace in self.traces.values():
            if trace.entry[0] == window:
                trace.values.append(float(hidden[trace.entry[1], trace.entry[2]]))
        return created

    def state_summaries(self, decode: Callable[[int], str]) -> list[dict[str, Any]]:
        """Per state, JSON: median |x|, largest value with its place and token, how many entries are massive."""
        summaries = []
        for row in self.rows:
            place = dict(row["at"])
            place["token"] = decode(int(self.tokens[place["window"], place["position"]]))
            summaries.append({**row, "channels": sorted(row["channels"]), "at": place})
        return summaries

    def channel_summaries(self, decode: Callable[[int], str]) -> list[dict[str, Any]]:
        """Per channel, the largest first, JSON: where it is created, its tokens and values, where it ends."""
        by_channel: dict[int, list[Trace]] = {}
        for trace in self.traces.values():
            by_channel.setdefault(trace.entry[2], []).append(trace)
        summaries = (self._channel_summary(channel, traces, decode) for channel, traces in by_channel.items())
        return sorted(summaries, key=lambda summary: -summary["peak"])

    def _channel_summary(self, channel: int, traces: list[Trace], decode: Callable[[int], str]) -> dict[str, Any]:
        created = min(trace.created for trace in traces)
        first = [trace for trace in traces if trace.created == created]
        values = torch.tensor([trace.values for trace in first]).median(0).values
        magnitudes = values.abs()
        peak = int(magnitudes.argmax())
        limit = ENDED * float(magnitudes[peak])
        faded = [i for i in range(peak, len(magnitudes)) if float(magnitudes[i]) < limit]
        massive = [i for i, row in enumerate(self.rows) if channel in row["channels"]]
        return {
            "channel": channel,
            "value": float(values[peak]),
            "peak": max(abs(value) for trace in traces for value in trace.values),
            "created": self.names[created],
            "last_massive": self.names[massive[-1]],
            "ends": self.names[created + faded[0]] if faded else None,
            "states": len(massive),
            "entries": len(traces),
            "tokens": _token_counts(traces, decode),
            "positions": sorted({trace.entry[1] for trace in traces})[:MAX_POSITIONS],
            "values": [None] * created + [round(float(value), 4) for value in values],
        }


def _token_counts(traces: list[Trace], decode: Callable[[int], str]) -> list[dict[str, Any]]:
    """The tokens that carry these entries, the most frequent first."""
    counts: dict[int, int] = {}
    for trace in traces:
        counts[trace.token] = counts.get(trace.token, 0) + 1
    order = sorted(counts, key=lambda token: (-counts[token], token))
    return [{"id": token, "text": decode(token), "count": counts[token]} for token in order[:MAX_TOKENS]]
