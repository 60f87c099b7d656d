"""Summaries of the measurements of all layers: which channels are outliers, which parts lose most to 4 bits."""

from __future__ import annotations

from typing import Any


def channel_outliers(layers: list[dict[str, Any]], side: str = "norms") -> list[dict[str, Any]]:
    """Channels that are outliers at some norm (or, with side="heads", at some query or key projection of a layer).

    layers: of the report. Per channel: at how many `places` `of` all, its largest `ratio`; for norms the means over
    places of the share of tokens and of what the gain explains."""
    total = sum(len(layer[side]) for layer in layers)
    by_key: dict[Any, list[dict[str, Any]]] = {}
    for layer in layers:
        for name, place in layer[side].items():
            for outlier in place["outliers"]:
                channel = outlier["channel"]
                key = channel if side == "norms" else (layer["layer"], name, channel)
                by_key.setdefault(key, []).append(outlier)
    rows = []
    for key, outliers in by_key.items():
        first = outliers[0]
        row: dict[str, Any] = {"channel": first["channel"], "places": len(outliers), "of": total}
        if side == "heads":
            row |= {"layer": key[0], "linear": key[1], "inputs": first["inputs"]}
            row |= {name: first[name] for name in ("sample_ratio", "sample_ratio_without_inputs")}
        else:
            for name in ("share_of_tokens", "explained_by_gain", "ratio_without_gain", "read_energy_over_median"):
                row[name] = sum(outlier[name] for outlier in outliers) / len(outliers)
        rows.append({**row, "ratio": max(outlier["ratio"] for outlier in outliers)})
    return sorted(rows, key=lambda row: (-row["places"], -row["ratio"]))


def rank_by_error(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every quantized part by its relative 4-bit output error, the worst first: in the Hadamard basis where that was
    measured, as stored otherwise. Keys and values have their own relative error: only attention reads them."""
    rows = []
    for layer in layers:
        number = layer["layer"]
        for tap, errors in layer["taps"].items():
            activations = errors["activations"]
            best = _best_basis(activations)
            rows.append(_row("activations", number, tap, activations["none"]["output"], best["output"], best))
            for name, weight in errors["weights"].items():
                best_output = _best_basis(weight)["output"]
                rows.append(_row("weights", number, name, weight["none"]["output"], best_output, {}))
        for side, kv in layer["kv"].items():
            best = _best_basis(kv)
            rows.append(_row(side, number, "cache", kv["none"]["relative"], best["relative"], best))
    return sorted(rows, key=lambda row: -row["error"])


def _best_basis(errors: dict[str, Any]) -> dict[str, Any]:
    """The errors in the Hadamard basis, or as stored where that was not measured."""
    chosen: dict[str, Any] = errors.get("hadamard", errors["none"])
    return chosen


def _row(what: str, layer: int, part: str, stored: float, error: float, details: dict[str, Any]) -> dict[str, Any]:
    row = {"what": what, "layer": layer, "part": part, "stored": stored, "error": error}
    return row | ({"massive_share": details["massive_share"]} if "massive_share" in details else {})


def mean_errors_by_part(ranked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over layers of every kind of part, the worst first. ranked: of `rank_by_error`."""
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
