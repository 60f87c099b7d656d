"""The reports of two checkpoints as one table and one page."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from dfrot.files import write_bytes
from dfrot.outliers.report import svg
from dfrot.outliers.report.figures import Figure, all_figures, short_name
from dfrot.outliers.report.html import document, figure_grid, table, write_figures


def difference_rows(a: dict[str, Any], b: dict[str, Any]) -> list[list[Any]]:
    """The figures of two reports, one line each: [what, of a, of b]."""
    lines: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        ("massive activation channels", lambda r: len(r["massive"]["channels"])),
        ("massive activations created by", lambda r: [short_name(place["where"]) for place in r["massive"]["created"]]),
        ("largest |x| of the stream", lambda r: max(abs(state["max"]) for state in r["massive"]["states"])),
        ("largest |x| / median", lambda r: max(state["ratio"] for state in r["massive"]["states"])),
        ("channel outliers behind norms", lambda r: len(r["channel_outliers"])),
        ("largest channel ratio", lambda r: max(n["curve"][0] for x in r["layers"] for n in x["norms"].values())),
        ("query and key channel outliers", lambda r: len(r["head_outliers"])),
        ("attention to the first token", lambda r: _mean([x["sinks"]["mean_first_token"] for x in r["layers"]])),
        ("error / norm at 4 bits, massive tokens", lambda r: r["token_errors"]["methods"]["none"]["massive"]),
        ("error / norm at 4 bits, common tokens", lambda r: r["token_errors"]["methods"]["none"]["common"]),
    ]
    rows = [[name, _rounded(read(a)), _rounded(read(b))] for name, read in lines]
    for tap in a["layers"][0]["taps"]:
        values = [_mean([x["taps"][tap]["activations"]["none"]["output"] for x in r["layers"]]) for r in (a, b)]
        rows.append([f"output error at 4 bits, input of {short_name(tap)}", *map(_rounded, values)])
    for side in ("keys", "values"):
        values = [_mean([x["kv"][side]["none"]["relative"] for x in r["layers"]]) for r in (a, b)]
        rows.append([f"error at 4 bits of {side}", *map(_rounded, values)])
    return rows


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _rounded(value: Any) -> Any:
    """A float with four digits; other values as they are."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def comparison_figures(a: dict[str, Any], b: dict[str, Any], maps: list[dict[str, Any]]) -> list[Figure]:
    """Both streams in one chart, then the pictures of a and b in turns. maps: their data, of a and of b."""
    names = [_label(report) for report in (a, b)]
    series = [
        svg.Series(name, [(float(i), abs(state["max"])) for i, state in enumerate(report["massive"]["states"])])
        for name, report in zip(names, (a, b))
    ]
    stream = svg.line_chart("Largest |x| of the residual stream", series, "state", "|x|", log=True)
    figures = [Figure("stream", "both", stream, "In each checkpoint's own basis.")]
    sides = [{figure.name: figure for figure in all_figures(report, data)} for report, data in zip((a, b), maps)]
    for name, left in sides[0].items():
        right = sides[1].get(name)
        if right is not None:
            figures += [
                Figure(f"{key}-{name}", "both", figure.svg, f"{label}. {figure.caption}", figure.png)
                for key, label, figure in (("a", names[0], left), ("b", names[1], right))
            ]
    return figures


def _label(report: dict[str, Any]) -> str:
    model = report["model"]
    return f"{model['name']}, {model['kind']}"


def write_comparison(folder: Path, report: dict[str, Any], maps: list[dict[str, Any]]) -> None:
    """Write report.html and its figures into `folder`. report: of `stages.outliers.compare`; maps: of both sides."""
    a, b = report["a"], report["b"]
    figures = comparison_figures(a, b, maps)
    write_figures(folder, figures)
    title = f"Outliers of {_label(a)} and {_label(b)}"
    rows = table(("", _label(a), _label(b)), report["rows"])
    page = document(title, f"<h1>{escape(title)}</h1>{rows}{figure_grid(figures)}")
    write_bytes(folder / "report.html", page.encode())
