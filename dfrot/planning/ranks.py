"""Hours on several ranks, simulated from the costs of one: what is shared, what is not, and what travels.

Every rank is a machine as the plan's, with a wire of its own. Units (chunks of samples, windows, norms of a step,
blocks) are not split, so that the busiest rank does ceil(units / ranks) of them. What a unit sends to the rank that
adds it up arrives over that rank's wire, and so does what a rank sends to all others leave. Nothing overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dfrot.planning.work import Share, StageCost

LATENCY = 1e-3
"""Seconds of an exchange, beside its bytes."""
BITS = 8.0


def seconds_on(cost: StageCost, rates: Mapping[str, float], ranks: int, gigabits: float) -> dict[str, float]:
    """{"seconds", "alone", "shared", "network"}: of a stage on `ranks` ranks, of what is not shared, of the busiest
    rank's part of what is, and of what travels over wires of `gigabits` Gb/s."""
    alone = _seconds(cost.work, rates)
    shared = network = 0.0
    for share in cost.shares:
        whole = _seconds(share.work, rates)
        alone -= whole
        busiest = math.ceil(share.units / ranks)
        shared += whole * busiest / share.units
        if ranks > 1:
            network += _travel(share, ranks, busiest) / (gigabits * 1e9 / BITS) + LATENCY * share.exchanges * busiest
    return {"seconds": alone + shared + network, "alone": alone, "shared": shared, "network": network}


def _travel(share: Share, ranks: int, busiest: int) -> float:
    """Bytes over the busiest wire."""
    copies = math.ceil(math.log2(ranks)) if share.passed_on else ranks - 1
    return (share.units - busiest) * share.collected + copies * share.sent


def _seconds(work: Mapping[str, float], rates: Mapping[str, float]) -> float:
    return sum(amount / rates[kind] for kind, amount in work.items())
