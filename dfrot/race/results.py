"""What the samples of a race say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from dfrot.bench.clock import Timing
from dfrot.race.lane import Lane
from dfrot.race.turns import Samples, TimedPrompt

REFERENCES = ("torch bf16", "dfq 16 bits")  # whose perplexity others are compared with: the first that ran


def result(lane: Lane, prompts: Sequence[TimedPrompt], samples: Samples, source: str) -> dict[str, Any]:
    """A contender's row, JSON: `first[n]` (seconds until the first token behind n tokens) and `decode[n]` (seconds of
    one token behind n cached ones), as `Timing`; `perplexity`, `text_perplexity`, `load` (seconds, libraries imported
    before), `memory`, `bytes_on_disk`, `bits`, `version`, `kernels`."""
    name, first, decode = lane.contender.name, {}, {}
    for timed in prompts:
        measured = samples.of(source, name, timed.prompt)
        if measured:
            first[str(timed.prompt)] = Timing.of([value for value, _ in measured]).to_dict()
        if measured and timed.decode:
            decode[str(timed.prompt)] = Timing.of([value / timed.decode for _, value in measured]).to_dict()
    facts = lane.load.get("facts") or {}
    return {
        "name": name,
        "engine": lane.contender.engine,
        "path": str(lane.contender.path),
        "bits": lane.contender.bits,
        "perplexity": _perplexity(statistics.fmean(lane.losses)),
        "text_perplexity": None if lane.text_loss is None else _perplexity(lane.text_loss),
        "load": lane.load.get("seconds"),
        "first": first,
        "decode": decode,
        "memory": lane.memory,
        "bytes_on_disk": lane.contender.bytes_on_disk,
        "version": str(facts.get("version", "")),
        "kernels": str(facts.get("kernels", "")),
    }


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


def rank(results: list[dict[str, Any]], max_ratio: float) -> None:
    """Add `ratio` (perplexity over that of 16 bits), `fault` (why a row is out of the ranking, or None) and `wins`
    (measurements at which no sound row is better)."""
    by_name = {row["name"]: row for row in results}
    reference = next((by_name[name] for name in REFERENCES if name in by_name), None)
    for row in results:
        row["ratio"] = row["perplexity"] / reference["perplexity"] if reference else None
        row["fault"] = fault(row, reference, max_ratio)
    sound = [row for row in results if row["fault"] is None]
    for row in results:
        row["wins"] = [f"{part} {n}" for part in ("first", "decode") for n in row[part] if _best(row, part, n, sound)]


def fault(row: dict[str, Any], reference: dict[str, Any] | None, max_ratio: float) -> str | None:
    """Why a row's speed does not count: its perplexity, or the text that it decodes, is not that of the model."""
    if row["ratio"] is not None and not row["ratio"] <= max_ratio:
        return f"perplexity x {row['ratio']:.3g}"
    # the greedy text of a sound model is likelier than what people write
    if reference and row["text_perplexity"] is not None and not row["text_perplexity"] <= reference["perplexity"]:
        return f"its text has perplexity {row['text_perplexity']:.3g}"
    return None


def _best(row: dict[str, Any], part: str, n: str, sound: list[dict[str, Any]]) -> bool:
    times = [other[part][n]["median"] for other in sound if n in other[part]]
    return row in sound and row[part][n]["median"] <= min(times)
