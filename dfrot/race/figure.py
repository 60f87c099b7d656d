"""The plot of `dfq bench models`: perplexity over speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.bench.plotting import DPI, new_figure

PARTS = (("first", "seconds to the first token behind {} tokens"), ("decode", "tokens/s behind {} cached ones"))


def require_plotting() -> None:
    """Raise ResourceError without matplotlib, before anything is measured."""
    new_figure(1, 1)


def plot_race(report: dict[str, Any], path: Path) -> None:
    """Draw a report of `bench_models`: a row of plots per 16-bit folder, one for the longest prompt whose first token
    was timed and one per number of cached tokens; every contender is a point of speed and perplexity.

    Raises ResourceError without matplotlib."""
    panels = [(source, part, n) for source in report["sources"] for part, n in _parts(source)]
    columns = max((len(_parts(source)) for source in report["sources"]), default=1) or 1
    figure = new_figure(4.6 * columns, 3.6 * max(1, len(report["sources"])))
    axes: Any = figure.subplots(max(1, len(report["sources"])), columns, squeeze=False)
    used = set()
    for source, part, n in panels:
        row = report["sources"].index(source)
        column = _parts(source).index((part, n))
        used.add((row, column))
        _panel(axes[row][column], source, part, n)
    for row, line in enumerate(axes):
        for column, axis in enumerate(line):
            axis.set_visible((row, column) in used)
    machine = report["machine"]
    figure.suptitle(f"{machine['processor']}, {machine['threads']} threads, batch 1", fontsize=10)
    figure.savefig(path, dpi=DPI)


def _parts(source: dict[str, Any]) -> list[tuple[str, str]]:
    """What is drawn of a source: (part, tokens)."""
    keys: dict[str, list[int]] = {
        part: sorted({int(n) for row in source["results"] for n in row[part]}) for part, _ in PARTS
    }
    return [("first", str(n)) for n in keys["first"][-1:]] + [("decode", str(n)) for n in keys["decode"]]


def _panel(axis: Any, source: dict[str, Any], part: str, n: str) -> None:
    for row in source["results"]:
        if n in row[part]:
            seconds = row[part][n]["median"]
            speed = seconds if part == "first" else 1 / seconds
            axis.scatter([speed], [row["ratio"] or row["perplexity"]], color="C0" if row["engine"] == "dfq" else "C1")
            axis.annotate(row["name"], (speed, row["ratio"] or row["perplexity"]), fontsize=7)
    axis.set(xlabel=dict(PARTS)[part].format(n), ylabel="perplexity x 16 bits", title=Path(source["model"]).name)
    axis.grid(True, alpha=0.25)
