"""Two reports as one table and one page."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from dfrot.files import write_bytes
from dfrot.outliers.report import svg
from dfrot.outliers.report.figures import Figure, all_figures, short_name
from dfrot.outliers.report.html import FOLDER, STYLE, table

Row = tuple[str, Any, Any]


def difference_rows(a: dict[str, Any], b: dict[str, Any]) -> list[list[Any]]:
    """What differs, one line each: [what, of A, of B]."""
    lines: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        ("massive activation channels", lambda r: len(r["massive"]["channels"])),
        ("massive activations created by", lambda r: [short_name(one["where"]) for one in r["massive"]["created"]]),
        ("largest |x| of the stream", lambda r: max(abs(s["max"]) for s in r["massive"]["states"])),
        ("largest |x| / median", lambda r: max(s["ratio"] for s in r["massive"]["states"])),
        ("channel outliers behind norms", lambda r: len(r["channel_outliers"])),
        ("largest channel ratio", lambda r: max(n["curve"][0] for x in r["layers"] for n in x["norms"].values())),
        ("query and key channel outliers", lambda r: len(r["head_outliers"])),
        ("attention to the first token", lambda r: _mean([x["sinks"]["mean_first_token"] for x in r["layers"]])),
        ("error / norm at 4 bits, massive tokens", lambda r: r["token_errors"]["methods"]["none"]["massive"]),
        ("error / norm at 4 bits, common tokens", lambda r: r["token_errors"]["methods"]["none"]["common"]),
    ]
    table_rows = [[name, _round(read(a)), _round(read(b))] for name, read in lines]
    for tap in a["layers"][0]["taps"]:
        values = [_mean([x["taps"][tap]["activations"]["none"]["output"] for x in r["layers"]]) for r in (a, b)]
        table_rows.append([f"output error at 4 bits, input of {short_name(tap)}", *map(_round, values)])
    for side in ("keys", "values"):
        values = [_mean([x["kv"][side]["none"]["relative"] for x in r["layers"]]) for r in (a, b)]
        table_rows.append([f"error at 4 bits of {side}", *map(_round, values)])
    return table_rows


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _round(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def figures(a: dict[str, Any], b: dict[str, Any], maps: list[dict[str, Any]]) -> list[Figure]:
    """Both streams in one chart, then the pictures of A and B in turns."""
    names = [_label(one) for one in (a, b)]
    series = [
        svg.Series(name, [(float(i), abs(s["max"])) for i, s in enumerate(one["massive"]["states"])])
        for name, one in zip(names, (a, b))
    ]
    stream = svg.line_chart("Largest |x| of the residual stream", series, "state", "|x|", log=True)
    found = [Figure("stream", "both", stream, "In each checkpoint's own basis.")]
    sides = [{f.name: f for f in all_figures(one, drawn)} for one, drawn in zip((a, b), maps)]
    for name, left in sides[0].items():
        right = sides[1].get(name)
        if right is not None:
            found += [
                Figure(f"{key}-{name}", "both", one.svg, f"{label}. {one.caption}", one.png)
                for key, label, one in (("a", names[0], left), ("b", names[1], right))
            ]
    return found


def _label(report: dict[str, Any]) -> str:
    model = report["model"]
    return f"{model['name']}, {model['kind']}"


def write_comparison(folder: Path, report: dict[str, Any], maps: list[dict[str, Any]]) -> None:
    """report.html and its figures."""
    a, b = report["a"], report["b"]
    shown = figures(a, b, maps)
    (folder / FOLDER).mkdir(exist_ok=True)
    for one in shown:
        write_bytes(folder / FOLDER / f"{one.name}.svg", one.svg.encode())
        if one.png is not None:
            write_bytes(folder / FOLDER / f"{one.name}.png", one.png)
    title = f"Outliers of {_label(a)} and {_label(b)}"
    grid = "".join(
        f"<figure id='figure-{escape(one.name)}'>{one.svg}<figcaption>{escape(one.caption)}</figcaption></figure>"
        for one in shown
    )
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><link rel='icon' href='data:,'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f"{table(('', _label(a), _label(b)), report['rows'])}<div class='grid'>{grid}</div></body></html>\n"
    )
    write_bytes(folder / "report.html", page.encode())
