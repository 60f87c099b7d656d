"""Massive activations at the place where they are created: zero, their mean (a constant), or a smaller value.

The published contrast (Sun et al., arXiv 2402.17762; arXiv 2503.22329): the mean is harmless, zero is fatal to models
that lean on them, because a massive activation is a bias that happens to be carried by a token.

Created by the embedding, an entry is a weight and is edited. Created by a linear, `zero` and `smooth` edit the
attributed weights; the mean is a constant for some tokens only, which no weight can express: it becomes a reset that
the runtime applies behind that block (|x_c| above half of the smallest massive value -> the mean).
"""

from __future__ import annotations

from typing import Any

from dfrot.errors import UnsupportedError
from dfrot.outliers.fixes.base import Change, Context, with_entries, with_factors
from dfrot.quant.resets import Reset

BELOW = 0.5  # smooth: of the smallest limit at any state where the channel is massive


class MassiveFix:
    """Fix `massive`."""

    name = "massive"
    modes: tuple[str, ...] = ("mean", "zero", "smooth")

    def plan(self, context: Context, mode: str) -> Change:
        created = context.report["massive"]["created"]
        if not created:
            raise UnsupportedError("fix massive: the report names no massive activation; nothing to change")
        change = Change(account={"places": []})
        for place in created:
            handle = self._embedding if place["kind"] == "embedding" else self._writer
            change.account["places"].append({"where": place["where"], **handle(change, context, place, mode)})
        return change

    def _embedding(self, change: Change, context: Context, place: dict[str, Any], mode: str) -> dict[str, Any]:
        entries = [(one["row"], one["channel"], one["weight"]) for one in place["origins"]]
        by_channel: dict[int, list[float]] = {}
        for _, channel, value in entries:
            by_channel.setdefault(channel, []).append(value)
        limit = BELOW * _smallest_limit(context.report)
        places = []
        for row, channel, value in entries:
            mean = sum(by_channel[channel]) / len(by_channel[channel])
            small = limit if value > 0 else -limit
            places.append((row, channel, {"mean": mean, "zero": 0.0, "smooth": small}[mode]))
        change.edit(f"{place['where']}.weight", with_entries(places))
        return {"entries": [list(one) for one in places]}

    def _writer(self, change: Change, context: Context, place: dict[str, Any], mode: str) -> dict[str, Any]:
        terms = {(origin["channel"], term["column"]) for origin in place["origins"] for term in origin["terms"]}
        if mode == "mean":
            resets = [_reset(context, place, channel) for channel in place["channels"]]
            change.resets += resets
            return {"resets": [reset.to_dict() for reset in resets]}
        if not terms:
            raise UnsupportedError(
                f"fix massive: {place['where']} makes it of many small terms; no weight stands for it"
            )
        values = {one["channel"]: one["peak"] for one in context.report["massive"]["channels"]}
        limit = BELOW * _smallest_limit(context.report)
        factors = {(c, j): 0.0 if mode == "zero" else min(1.0, limit / values[c]) for c, j in sorted(terms)}
        change.edit(f"{place['where']}.weight", with_factors(factors))
        return {"weights": [[*key, factor] for key, factor in factors.items()]}


def _smallest_limit(report: dict[str, Any]) -> float:
    criteria = report["criteria"]
    states = [state for state in report["massive"]["states"] if state["count"]]
    return float(min(max(criteria["absolute"], criteria["ratio_at_this_width"] * state["median"]) for state in states))


def _reset(context: Context, place: dict[str, Any], channel: int) -> Reset:
    """The mean of the channel's massive values behind the block that creates it."""
    arch, report = context.arch, context.report
    block = next(arch.prefix(i) for i in range(arch.n_layers) if place["where"].startswith(arch.prefix(i) + "."))
    names = [state["state"] for state in report["massive"]["states"]]
    behind = max(i for i, name in enumerate(names) if name.startswith(block + "."))
    found = next(one for one in report["massive"]["channels"] if one["channel"] == channel)
    value = float(found["values"][behind])
    return Reset(block, channel, BELOW * abs(value), value)
