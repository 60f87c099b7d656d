"""Massive activations: detected in the residual stream, followed from where they appear to where they end.

States of the stream are named after what wrote them: the embedding, then every linear that writes to it. An entry is
one (window, position, channel). Once an entry has met the criterion somewhere, its value is followed at every later
state; entries are summarised per channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dfrot.outliers.measure.criteria import Criteria, massive_entries, median_magnitude

MOST = 256  # entries followed; more are counted only
ENDED = 0.5  # an entry ends where less than this share of its largest value is left

Entry = tuple[int, int, int]
"""(window, position, channel)"""


@dataclass
class Trace:
    """Where an entry was first massive, and its value at every state from there on."""

    entry: Entry
    token: int
    born: int
    values: list[float] = field(default_factory=list)


class MassiveTracker:
    """Feed it the states of the stream, in order for each window."""

    def __init__(self, criteria: Criteria, tokens: Tensor) -> None:
        """tokens int64 [windows, S]."""
        self.criteria, self.tokens = criteria, tokens
        self.names: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.traces: dict[Entry, Trace] = {}

    def begin(self, name: str) -> None:
        """A new state: `model.embed_tokens` or the full name of a writer."""
        self.names.append(name)
        self.rows.append({"state": name, "median": 0.0, "max": 0.0, "count": 0, "channels": set(), "at": None})

    def add(self, window: int, hidden: Tensor, state: int = -1) -> list[Trace]:
        """One window's stream [S, hidden] at a state that was begun (the last one, or counted from the end); returns
        the entries that are massive here for the first time. A window's states come in order."""
        row, state = self.rows[state], state % len(self.names)
        middle = float(median_magnitude(hidden))
        limit = self.criteria.limit(hidden)
        found = massive_entries(hidden, limit, 1 << 20)
        row["median"] += middle / len(self.tokens)
        row["count"] += len(found)
        row["channels"].update(found[:, 1].tolist())
        flat = int(hidden.abs().argmax())
        position, channel = divmod(flat, hidden.shape[1])
        value = float(hidden[position, channel])
        if abs(value) >= abs(row["max"]):
            row["max"], row["ratio"] = value, abs(value) / max(middle, 1e-30)
            row["at"] = {"window": window, "position": position, "channel": channel}
        born: list[Trace] = []
        for position, channel in found[:MOST].tolist():
            entry = (window, position, channel)
            if entry not in self.traces and len(self.traces) < MOST:
                trace = Trace(entry, int(self.tokens[window, position]), state)
                self.traces[entry] = trace
                born.append(trace)
        for trace in self.traces.values():
            if trace.entry[0] == window:
                trace.values.append(float(hidden[trace.entry[1], trace.entry[2]]))
        return born

    def layers(self, decode: Callable[[int], str]) -> list[dict[str, Any]]:
        """Per state: median |x|, largest value with its place and token, how many entries are massive."""
        out = []
        for row in self.rows:
            at = dict(row["at"])
            at["token"] = decode(int(self.tokens[at["window"], at["position"]]))
            out.append({**row, "channels": sorted(row["channels"]), "at": at})
        return out

    def channels(self, decode: Callable[[int], str]) -> list[dict[str, Any]]:
        """Per channel: where it is created, which tokens carry it, values along the way, where it ends."""
        groups: dict[int, list[Trace]] = {}
        for trace in self.traces.values():
            groups.setdefault(trace.entry[2], []).append(trace)
        return sorted((self._channel(c, traces, decode) for c, traces in groups.items()), key=lambda one: -one["peak"])

    def _channel(self, channel: int, traces: list[Trace], decode: Callable[[int], str]) -> dict[str, Any]:
        born = min(trace.born for trace in traces)
        first = [trace for trace in traces if trace.born == born]
        path = torch.tensor([trace.values for trace in first]).median(0).values
        size = path.abs()
        peak = int(size.argmax())
        gone = [i for i in range(peak, len(size)) if float(size[i]) < ENDED * float(size[peak])]
        massive = [i for i, row in enumerate(self.rows) if channel in row["channels"]]
        return {
            "channel": channel,
            "value": float(path[peak]),
            "peak": max(abs(v) for trace in traces for v in trace.values),
            "created": self.names[born],
            "last_massive": self.names[massive[-1]],
            "ends": self.names[born + gone[0]] if gone else None,
            "states": len(massive),
            "entries": len(traces),
            "tokens": _tokens(traces, decode),
            "positions": sorted({trace.entry[1] for trace in traces})[:32],
            "values": [None] * born + [round(float(v), 4) for v in path],
        }


def _tokens(traces: list[Trace], decode: Callable[[int], str]) -> list[dict[str, Any]]:
    counts: dict[int, int] = {}
    for trace in traces:
        counts[trace.token] = counts.get(trace.token, 0) + 1
    order = sorted(counts, key=lambda token: (-counts[token], token))
    return [{"id": token, "text": decode(token), "count": counts[token]} for token in order[:16]]
