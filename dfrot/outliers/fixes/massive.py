"""Massive activations where they are created: set to zero, to their mean (a constant), or to a smaller value.

The published contrast (Sun et al., arXiv 2402.17762; arXiv 2503.22329): the mean is harmless, zero breaks models that
rely on them, because a massive activation acts as a bias that a token happens to carry.

Where the embedding creates an entry, the entry is a weight and is edited. Where a linear creates it, `zero` and
`smooth` edit the attributed weights. The mean is a constant for some tokens only, which no weight can express: it
becomes a reset that the runtime applies behind that block (|x_c| above half of the smallest massive value -> the mean).
"""

from __future__ import annotations

from typing import Any

from dfrot.errors import UnsupportedError
from dfrot.outliers.fixes.base import Change, Context, with_entries, with_factors
from dfrot.quant.resets import Reset

MARGIN = 0.5  # smooth: share of the smallest limit of all states; reset: share of the value above which it applies


class MassiveFix:
    """Fix `massive`."""

    name = "massive"
    modes: tuple[str, ...] = ("mean", "zero", "smooth")

    def plan(self, context: Context, mode: str) -> Change:
        """As `Fix.plan`."""
        created = context.report["massive"]["created"]
        if not created:
            raise UnsupportedError("fix massive: the report names no massive activation; nothing to change")
        change = Change(account={"places": []})
        for place in created:
            plan_place = _plan_embedding if place["kind"] == "embedding" else _plan_writer
            change.account["places"].append({"where": place["where"], **plan_place(change, context, place, mode)})
        return change


def _plan_embedding(change: Change, context: Context, place: dict[str, Any], mode: str) -> dict[str, Any]:
    """Edit the entries of the embedding that are massive; returns the account."""
    origins = place["origins"]
    by_channel: dict[int, list[float]] = {}
    for origin in origins:
        by_channel.setdefault(origin["channel"], []).append(origin["weight"])
    limit = MARGIN * _smallest_limit(context.report)
    entries = []
    for origin in origins:
        channel, value = origin["channel"], origin["weight"]
        mean = sum(by_channel[channel]) / len(by_channel[channel])
        smooth = limit if value > 0 else -limit
        entries.append((origin["row"], channel, {"mean": mean, "zero": 0.0, "smooth": smooth}[mode]))
    change.edit(f"{place['where']}.weight", with_entries(entries))
    return {"entries": [list(entry) for entry in entries]}


def _plan_writer(change: Change, context: Context, place: dict[str, Any], mode: str) -> dict[str, Any]:
    """Edit the attributed weights of a linear, or add resets for the mean; returns the account."""
    terms = {(origin["channel"], term["column"]) for origin in place["origins"] for term in origin["terms"]}
    if mode == "mean":
        resets = [_reset(context, place, channel) for channel in place["channels"]]
        change.resets += resets
        return {"resets": [reset.to_dict() for reset in resets]}
    if not terms:
        raise UnsupportedError(f"fix massive: {place['where']} sums it from many small terms, not from a few weights")
    peaks = {channel["channel"]: channel["peak"] for channel in context.report["massive"]["channels"]}
    limit = MARGIN * _smallest_limit(context.report)
    factors = {
        (channel, column): 0.0 if mode == "zero" else min(1.0, limit / peaks[channel])
        for channel, column in sorted(terms)
    }
    change.edit(f"{place['where']}.weight", with_factors(factors))
    return {"weights": [[*entry, factor] for entry, factor in factors.items()]}


def _smallest_limit(report: dict[str, Any]) -> float:
    """The smallest |x| that counts as massive at any state that has massive entries."""
    criteria = report["criteria"]
    states = [state for state in report["massive"]["states"] if state["count"]]
    return float(min(max(criteria["absolute"], criteria["ratio_at_this_width"] * state["median"]) for state in states))


def _reset(context: Context, place: dict[str, Any], channel: int) -> Reset:
    """Set the channel's massive values behind the block that creates them to their mean."""
    arch, report = context.arch, context.report
    block = next(arch.prefix(i) for i in range(arch.n_layers) if place["where"].startswith(arch.prefix(i) + "."))
    names = [state["state"] for state in report["massive"]["states"]]
    last_state = max(i for i, name in enumerate(names) if name.startswith(block + "."))
    summary = next(entry for entry in report["massive"]["channels"] if entry["channel"] == channel)
    value = float(summary["values"][last_state])
    return Reset(block, channel, MARGIN * abs(value), value)
