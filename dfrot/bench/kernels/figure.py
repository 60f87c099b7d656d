"""The roofline plot of `dfq bench kernels`: operations per byte against operations per second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.bench.plotting import DPI, new_figure

COLOURS = ("#1f77b4", "#2ca02c", "#d62728", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#e377c2")
PEER_COLOUR = "#7f7f7f"


def plot_roofline(result: dict[str, Any], path: Path) -> None:
    """Draw a result of `bench_kernels` as a PNG (or what the suffix says): one point per linear operator and shape, one
    grey cross per peer, the measured bandwidth and peaks as lines. Raises ResourceError without matplotlib."""
    figure = new_figure(8, 5.5)
    axis: Any = figure.subplots()
    points = [row for row in result["results"] if row["passed"] and row["operations"]]
    intensities = [_intensity(row) for row in points] or [1.0]
    _draw_roofs(axis, result["roofline"], (min(intensities) / 2, max(intensities) * 2))
    for index, name in enumerate(dict.fromkeys(row["op"] for row in points)):
        own = [row for row in points if row["op"] == name]
        x = [_intensity(row) for row in own]
        y = [row["operations_per_s"] / 1e9 for row in own]
        axis.plot(x, y, "o", color=COLOURS[index % len(COLOURS)], label=name, zorder=3)
    for row in points:
        for peer in row["peers"].values():
            speed = row["operations"] / peer["seconds"]["median"] / 1e9
            axis.plot(_intensity(row), speed, "x", color=PEER_COLOUR, zorder=2)
    axis.plot([], [], "x", color=PEER_COLOUR, label="peers, at our intensity")
    axis.set(xscale="log", yscale="log", xlabel="operations per byte that our op reads and writes")
    axis.set_ylabel("billions of operations per second")
    axis.grid(True, which="both", alpha=0.25)
    axis.legend(fontsize=8)
    machine = result["machine"]
    axis.set_title(f"{machine['processor']}, {machine['threads']} threads", fontsize=10)
    figure.savefig(path, dpi=DPI)


def _intensity(row: dict[str, Any]) -> float:
    """Operations per byte."""
    return float(row["operations"] / row["bytes"])


def _draw_roofs(axis: Any, roofline: dict[str, float], span: tuple[float, float]) -> None:
    """Bandwidth times intensity up to each arithmetic peak, over the intensities `span`."""
    bandwidth = roofline["read_bytes_per_s"]
    for kind, style in (("bf16", "--"), ("int8", "-")):
        peak = roofline[f"{kind}_per_s"]
        knee = min(max(peak / bandwidth, span[0]), span[1])
        x = [span[0], knee, span[1]]
        y = [min(peak, bandwidth * intensity) / 1e9 for intensity in x]
        axis.plot(x, y, style, color="black", linewidth=1, label=f"roofline, {kind} peak {peak / 1e9:,.0f} G/s")
