"""The roofline plot of `dfq bench kernels`: operations per byte against operations per second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.errors import ResourceError

COLOURS = ("#1f77b4", "#2ca02c", "#d62728", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#e377c2")


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw a result of `bench_kernels` as a PNG (or what the suffix says): one point per linear op and shape, one
    point per peer in grey, the measured bandwidth and peaks as lines. Raises ResourceError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ResourceError("the figure needs matplotlib, which is not installed: pip install 'dfq[plot]'") from None
    sheet = Figure(figsize=(8, 5.5), layout="constrained")
    axis: Any = sheet.subplots()
    points = [one for one in result["results"] if one["passed"] and one["operations"]]
    intensities = [one["operations"] / one["bytes"] for one in points] or [1.0]
    span = (min(intensities) / 2, max(intensities) * 2)
    _roof(axis, result["roofline"], span)
    names = list(dict.fromkeys(one["op"] for one in points))
    for index, name in enumerate(names):
        own = [one for one in points if one["op"] == name]
        x = [one["operations"] / one["bytes"] for one in own]
        y = [one["operations_per_s"] / 1e9 for one in own]
        axis.plot(x, y, "o", color=COLOURS[index % len(COLOURS)], label=name, zorder=3)
    for one in points:
        for peer in one["peers"].values():
            speed = one["operations"] / peer["seconds"]["median"] / 1e9
            axis.plot(one["operations"] / one["bytes"], speed, "x", color="#7f7f7f", zorder=2)
    axis.plot([], [], "x", color="#7f7f7f", label="peers, at our intensity")
    axis.set(xscale="log", yscale="log", xlabel="operations per byte that our op reads and writes")
    axis.set_ylabel("billions of operations per second")
    axis.grid(True, which="both", alpha=0.25)
    axis.legend(fontsize=8)
    machine = result["machine"]
    axis.set_title(f"{machine['processor']}, {machine['threads']} threads", fontsize=10)
    sheet.savefig(path, dpi=130)


def _roof(axis: Any, line: dict[str, float], span: tuple[float, float]) -> None:
    """Bandwidth times intensity up to each arithmetic peak."""
    for kind, style in (("bf16", "--"), ("int8", "-")):
        peak = line[f"{kind}_per_s"]
        knee = min(max(peak / line["read_bytes_per_s"], span[0]), span[1])
        x = [span[0], knee, span[1]]
        y = [min(peak, line["read_bytes_per_s"] * at) / 1e9 for at in x]
        axis.plot(x, y, style, color="black", linewidth=1, label=f"roofline, {kind} peak {peak / 1e9:,.0f} G/s")
