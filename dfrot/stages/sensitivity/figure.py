"""The picture of `dfq eval sensitivity`: the cost of every part, and of every layer, as one SVG document."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfrot.outliers.report import svg
from dfrot.stages.sensitivity.variants import LAYERS

SMALLEST = 1e-6  # nats: a divergence below is that of rounding in float32


def sensitivity_figure(report: Mapping[str, Any]) -> str:
    """The report of `sensitivity` as SVG: bars by part, lines by layer for every checkpoint."""
    results = report["results"]
    names = [Path(result.get("name", result["model"])).name for result in results]
    charts = [_bars(results, names)]
    for result, name in zip(results, names):
        if any(variant["group"] == LAYERS for variant in result["variants"]):
            charts.append(_lines(result, name))
    return _stacked(charts)


def _bars(results: list[Mapping[str, Any]], names: list[str]) -> str:
    """KL by part; checkpoints side by side."""
    costs: dict[str, list[float]] = {}
    for number, result in enumerate(results):
        for variant in result["variants"]:
            if variant["layer"] is None:
                row = costs.setdefault(variant["part"], [0.0] * len(results))
                row[number] = max(float(variant["kl"]), SMALLEST)
    return svg.bar_chart("KL from the exact model, nats per token, one part rounded", list(costs.items()), names, True)


def _lines(result: Mapping[str, Any], name: str) -> str:
    """KL by layer, a line per part."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for variant in result["variants"]:
        if variant["group"] == LAYERS:
            point = (float(variant["layer"]), max(float(variant["kl"]), SMALLEST))
            lines.setdefault(variant["part"], []).append(point)
    series = [svg.Series(label, points) for label, points in lines.items()]
    return svg.line_chart(f"{name}: one layer rounded", series, "layer", "KL, nats per token", log=True)


def _stacked(charts: list[str]) -> str:
    """Charts below one another in one document."""
    heights = [int(match[1]) for chart in charts if (match := re.search(r"viewBox='0 0 \d+ (\d+)'", chart))]
    parts, top = [], 0
    for chart, height in zip(charts, heights):
        parts.append(chart.replace("width='100%'", f"y='{top}' width='{svg.WIDTH}' height='{height}'", 1))
        top += height
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {svg.WIDTH} {top}' width='{2 * svg.WIDTH}'>"
        + "".join(parts)
        + "</svg>"
    )
