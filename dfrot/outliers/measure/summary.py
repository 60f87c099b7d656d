"""From what was measured per layer to what a person wants to know: which outliers, which parts lose most."""

from __future__ import annotations

from typing import Any


def channel_outliers(layers: list[dict[str, Any]], side: str = "norms") -> list[dict[str, Any]]:
    """Channels that are outliers at some norm (or, with side="heads", at some query or key projection of a layer).

    Per channel: at how many places, largest ratio, mean share of tokens and, for norms, of the gain's explanation."""
    total = sum(len(layer[side]) for layer in layers)
    found: dict[Any, list[dict[str, Any]]] = {}
    for layer in layers:
        for name, place in layer[side].items():
            for one in place["outliers"]:
                key = one["channel"] if side == "norms" else (layer["layer"], name, one["channel"])
                found.setdefault(key, []).append(one)
    rows = []
    for key, ones in found.items():
        row: dict[str, Any] = {"channel": ones[0]["channel"], "places": len(ones), "of": total}
        if side == "heads":
            row |= {"layer": key[0], "linear": key[1], "inputs": ones[0]["inputs"]}
            row |= {name: ones[0][name] for name in ("sample_ratio", "sample_ratio_without_inputs")}
        else:
            for name in ("share_of_tokens", "explained_by_gain", "ratio_without_gain", "read_energy_over_median"):
                row[name] = sum(one[name] for one in ones) / len(ones)
        rows.append({**row, "ratio": max(one["ratio"] for one in ones)})
    return sorted(rows, key=lambda row: (-row["places"], -row["ratio"]))


def rank_by_error(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every quantized thing by its relative 4-bit output error, the worst first: after a Hadamard rotation where it was
    measured, as stored otherwise. Keys and values stand with their own relative error: nothing weighs them but
    attention."""
    rows = []
    for layer in layers:
        number = layer["layer"]
        for tap, found in layer["taps"].items():
            best = _best(found["activations"])
            rows.append(_row("activations", number, tap, found["activations"]["none"]["output"], best["output"], best))
            for name, weight in found["weights"].items():
                rows.append(_row("weights", number, name, weight["none"]["output"], _best(weight)["output"], {}))
        for side, kv in layer["kv"].items():
            best = _best(kv)
            rows.append(_row(side, number, "cache", kv["none"]["relative"], best["relative"], best))
    return sorted(rows, key=lambda row: -row["error"])


def _best(found: dict[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = found.get("hadamard", found["none"])
    return chosen


def _row(what: str, layer: int, part: str, stored: float, error: float, more: dict[str, Any]) -> dict[str, Any]:
    row = {"what": what, "layer": layer, "part": part, "stored": stored, "error": error}
    return row | ({"massive_share": more["massive_share"]} if "massive_share" in more else {})


def mean_errors_by_part(ranked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over layers of every kind of part, the worst first."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in ranked:
        groups.setdefault((row["what"], row["part"]), []).append(row)
    means = [
        {
            "what": what,
            "part": part,
            "stored": sum(row["stored"] for row in rows) / len(rows),
            "error": sum(row["error"] for row in rows) / len(rows),
            "worst_layer": max(rows, key=lambda row: row["error"])["layer"],
        }
        for (what, part), rows in groups.items()
    ]
    return sorted(means, key=lambda row: -row["error"])
