"""report.html: one file that opens offline, with its pictures inside and without scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dfrot.files import write_bytes
from dfrot.outliers.report.figures import Figure, all_figures, short_name

FOLDER = "figures"
MAX_ROWS = 24  # of a table in the page; report.json has all of them
SECTIONS = (
    ("massive", "Massive activations"),
    ("maps", "Activation maps"),
    ("channels", "Channel outliers"),
    ("sinks", "Attention sinks"),
    ("tokens", "4-bit error by token"),
    ("errors", "4-bit error by part of the model"),
)
STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:16px;font:16px/1.5 system-ui,sans-serif;color:#222;background:#fff}
h1{font-size:1.6rem;margin:.2em 0}h2{font-size:1.25rem;margin:1.8em 0 .4em;border-bottom:1px solid #ddd}
.grid{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}
figure{margin:0;border:1px solid #e3e3e3;border-radius:6px;padding:8px;min-width:0;max-width:680px}
figcaption{font-size:.85rem;color:#555}svg{display:block;height:auto;max-width:100%}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;margin:.6em 0}
th,td{text-align:right;padding:3px 10px 3px 0;border-bottom:1px solid #eee;white-space:nowrap}
th:first-child,td:first-child{text-align:left}.note{color:#555;font-size:.9rem}
nav a{margin-right:12px}
""".strip()


def write_report(folder: Path, report: dict[str, Any], maps: dict[str, Any]) -> None:
    """Write report.html and figures/*.svg, *.png into `folder`. maps: data of the pictures, see `figures`."""
    figures = all_figures(report, maps)
    write_figures(folder, figures)
    write_bytes(folder / "report.html", report_page(report, figures).encode())


def write_figures(folder: Path, figures: Sequence[Figure]) -> None:
    """Write each figure as a file of its own."""
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    for figure in figures:
        name = figure.name.replace("/", "-")
        write_bytes(target / f"{name}.svg", figure.svg.encode())
        if figure.png is not None:
            write_bytes(target / f"{name}.png", figure.png)


def report_page(report: dict[str, Any], figures: Sequence[Figure]) -> str:
    """The report of one checkpoint as an HTML document."""
    model, data = report["model"], report["data"]
    title = f"Outliers of {model['name']}"
    links = "".join(f"<a href='#{key}'>{escape(heading)}</a>" for key, heading in SECTIONS)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class='note'>{escape(model['model_type'])}, {escape(model['kind'])}, {model['layers']} layers of width "
        f"{model['hidden']}; {data['windows']} x {data['seqlen']} tokens of {escape(str(data['dataset']))}, "
        f"BOS {escape(data['bos'])}.</p><nav>{links}<a href='#recipe'>Recipe</a></nav>",
    ]
    for key, heading in SECTIONS:
        shown = figure_grid([figure for figure in figures if figure.group == key])
        text = SECTION_TEXTS[key](report) if key in SECTION_TEXTS else ""
        parts.append(f"<h2 id='{key}'>{escape(heading)}</h2>{text}{shown}")
    parts.append(f"<h2 id='recipe'>Recommended recipe</h2>{_recipe(report)}")
    return document(title, "\n".join(parts))


def document(title: str, body: str) -> str:
    """An HTML document with the style of the reports."""
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><link rel='icon' href='data:,'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def figure_grid(figures: Sequence[Figure]) -> str:
    """Figures side by side, with their captions."""
    shown = "".join(
        f"<figure id='figure-{escape(figure.name)}'>{figure.svg}"
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
        for figure in figures
    )
    return f"<div class='grid'>{shown}</div>"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table that scrolls sideways where it is too wide; MAX_ROWS rows at most."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row) + "</tr>" for row in rows[:MAX_ROWS]
    )
    more = f"<p class='note'>{len(rows) - MAX_ROWS} more in report.json.</p>" if len(rows) > MAX_ROWS else ""
    return f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>{more}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"
    return ", ".join(map(_cell, value)) if isinstance(value, (list, tuple)) else str(value)


def _massive(report: dict[str, Any]) -> str:
    """Massive activations, where they come from, and the ablation."""
    massive, criteria = report["massive"], report["criteria"]
    rule = (
        f"<p class='note'>An entry is massive when |x| &gt; {criteria['absolute']:g} and |x| &ge; "
        f"{criteria['ratio_at_this_width']:g} times the median ({criteria['ratio']:g} at width 4096).</p>"
    )
    if not massive["channels"]:
        return rule + "<p>None.</p>"
    rows = [
        (
            channel["channel"],
            channel["value"],
            " ".join(repr(token["text"]) for token in channel["tokens"][:4]),
            channel["positions"][:6],
            short_name(channel["created"]),
            short_name(channel["last_massive"]),
            short_name(channel["ends"]) if channel["ends"] else "stays",
        )
        for channel in massive["channels"]
    ]
    columns = ("channel", "value", "tokens", "positions", "created by", "massive until", "ends at")
    origins = [
        (short_name(place["where"]), origin["channel"], *_origin_cells(origin))
        for place in massive["created"]
        for origin in place["origins"]
    ]
    tables = table(columns, rows) + table(("place", "channel", "source", "weight", "activation", "share"), origins)
    return rule + tables + _ablation(massive["ablation"])


def _ablation(ablation: dict[str, Any] | None) -> str:
    """Whether the massive activations disappear without their sources."""
    if ablation is None:
        return ""
    before, after = ablation["perplexity"]
    if ablation["confirmed"]:
        verdict = "confirmed, no massive activation remains"
    else:
        verdict = "not confirmed, massive activations remain or reappear"
    removed = escape("; ".join(ablation["removed"]))
    return f"<p>Ablation ({removed}): {verdict}. Perplexity of that window {before:.4g} &rarr; {after:.4g}.</p>"


def _origin_cells(origin: dict[str, Any]) -> tuple[Any, ...]:
    """Source, weight, activation and share of a row of the table of origins."""
    if "terms" not in origin:
        return (f"row {origin['row']} ({origin['token']!r})", origin["weight"], None, 1.0)
    if not origin["terms"]:
        return ("diffuse", None, None, origin["explained"])
    largest = origin["terms"][0]
    source = f"column {largest['column']} of {len(origin['terms'])}"
    return (source, largest["weight"], largest["activation"], largest["share"])


def _channels(report: dict[str, Any]) -> str:
    """Channel outliers behind norms."""
    rows = [
        (
            outlier["channel"],
            f"{outlier['places']} of {outlier['of']}",
            outlier["ratio"],
            outlier["share_of_tokens"],
            outlier["explained_by_gain"],
            outlier["read_energy_over_median"],
        )
        for outlier in report["channel_outliers"]
    ]
    rule = (
        f"<p class='note'>A channel is an outlier when its median |x| is at least {report['criteria']['channel']:g} "
        f"times the median channel's. Query and key channels: {len(report['head_outliers'])}.</p>"
    )
    columns = ("channel", "norms", "largest ratio", "share of tokens", "explained by gain", "read energy / median")
    return rule + (table(columns, rows) if rows else "<p>None.</p>")


def _tokens(report: dict[str, Any]) -> str:
    """4-bit error by token under each rotation."""
    rows = [
        (name, errors["massive"], errors["common"], errors["massive_share"])
        for name, errors in report["token_errors"]["methods"].items()
    ]
    return table(("rotation", "massive tokens", "common tokens", "massive share of squared error"), rows)


def _errors(report: dict[str, Any]) -> str:
    """The parts with the largest 4-bit errors."""
    rows = [
        (row["what"], row["layer"], short_name(row["part"]), row["stored"], row["error"])
        for row in report["ranking"][:12]
    ]
    return table(("what", "layer", "part", "as stored", "rotated"), rows)


def _recipe(report: dict[str, Any]) -> str:
    """The recommended recipe with its reasons, and what it was measured to cost."""
    items = "".join(f"<li>{escape(reason)}</li>" for reason in report["recommendation"]["reasons"])
    measured = report["measured"]
    if measured is None:
        return f"<ul>{items}</ul><p class='note'>Its perplexity was not measured.</p>"
    rows = [("bf16", measured["bf16"], 1.0, None)]
    rows += [
        (name, recipe["perplexity"], recipe["ratio_to_bf16"], recipe["ratio_ci"])
        for name, recipe in measured["recipes"].items()
    ]
    return f"<ul>{items}</ul>" + table(("recipe", "perplexity", "x bf16", "paired ratio to default"), rows)


SECTION_TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "massive": _massive,
    "channels": _channels,
    "tokens": _tokens,
    "errors": _errors,
}
