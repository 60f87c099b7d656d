"""What follows from measured costs of drafting and verifying: break-even acceptance lengths and speedups."""

from __future__ import annotations

ACCEPTANCE_RATES = (0.5, 0.6, 0.7, 0.8, 0.9)


def round_seconds(n: int, verify: dict[int, float], draft: dict[int, float]) -> float:
    """Seconds of a round of n draft tokens.

    verify: seconds by number of rows; the pass of n + 1 rows is interpolated linearly between measured sizes, and
    extrapolated in proportion beyond them. draft: seconds by number of draft tokens."""
    sizes = sorted(verify)
    above = next((size for size in sizes if size >= n + 1), sizes[-1])
    below = max((size for size in sizes if size <= n + 1), default=above)
    share = (n + 1 - below) / (above - below) if above > below else 0.0
    cost = verify[below] + share * (verify[above] - verify[below])
    if n + 1 > sizes[-1]:
        cost *= (n + 1) / sizes[-1]
    return cost + draft[n]


def break_even_lengths(step: float, verify: dict[int, float], draft: dict[int, float]) -> dict[int, float]:
    """By number n of draft tokens: the acceptance length at which a round is as fast as plain decoding. Above n + 1 it
    never is. step: seconds of a step of plain decoding."""
    return {n: round_seconds(n, verify, draft) / step for n in sorted(draft)}


def best_speedups(step: float, verify: dict[int, float], draft: dict[int, float]) -> dict[str, dict[str, float]]:
    """By acceptance rate of a draft token: the measured number of draft tokens with the best speedup."""
    best = {}
    for rate in ACCEPTANCE_RATES:
        lengths = {n: (1 - rate ** (n + 1)) / (1 - rate) for n in draft}
        speedups = {n: lengths[n] * step / round_seconds(n, verify, draft) for n in draft}
        n = max(speedups, key=lambda n: speedups[n])
        best[f"{rate:g}"] = {"guesses": n, "tau": lengths[n], "speedup": speedups[n]}
    return best
