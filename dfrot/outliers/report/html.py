"""report.html: one file that opens offline, pictures inside it, nothing fetched, nothing run."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from dfrot.files import write_bytes
from dfrot.outliers.report.figures import Figure, all_figures, short_name

FOLDER = "figures"
ROWS = 24  # of a table in the page; all of them are in report.json
SECTIONS = (
    ("massive", "Massive activations"),
    ("maps", "Where the large values are"),
    ("channels", "Channel outliers"),
    ("sinks", "Attention sinks"),
    ("tokens", "Four bits, token by token"),
    ("errors", "Four bits, part by part"),
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
    """report.html and figures/*.svg, *.png in `folder`."""
    figures = all_figures(report, maps)
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    for one in figures:
        name = one.name.replace("/", "-")
        write_bytes(target / f"{name}.svg", one.svg.encode())
        if one.png is not None:
            write_bytes(target / f"{name}.png", one.png)
    write_bytes(folder / "report.html", report_page(report, figures).encode())


def report_page(report: dict[str, Any], figures: Sequence[Figure]) -> str:
    """The whole document."""
    model, data = report["model"], report["data"]
    name = escape(str(model["name"]))
    links = "".join(f"<a href='#{key}'>{escape(title)}</a>" for key, title in SECTIONS)
    parts = [
        f"<h1>Outliers of {name}</h1>",
        f"<p class='note'>{escape(model['model_type'])}, {escape(model['kind'])}, {model['layers']} layers of width "
        f"{model['hidden']}; {data['windows']} x {data['seqlen']} tokens of {escape(str(data['dataset']))}, "
        f"BOS {escape(data['bos'])}.</p><nav>{links}<a href='#recipe'>Recipe</a></nav>",
    ]
    for key, title in SECTIONS:
        shown = "".join(_figure(one) for one in figures if one.group == key)
        parts.append(f"<h2 id='{key}'>{escape(title)}</h2>{_words(key, report)}<div class='grid'>{shown}</div>")
    parts.append(f"<h2 id='recipe'>What to do about it</h2>{_recipe(report)}")
    head = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><link rel='icon' href='data:,'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>Outliers of {name}</title><style>{STYLE}</style></head><body>"
    )
    return head + "\n".join(parts) + "</body></html>\n"


def _figure(one: Figure) -> str:
    return f"<figure id='figure-{escape(one.name)}'>{one.svg}<figcaption>{escape(one.caption)}</figcaption></figure>"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table that scrolls sideways where it is too wide."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(_cell(v))}</td>" for v in row) + "</tr>" for row in rows[:ROWS])
    more = f"<p class='note'>{len(rows) - ROWS} more in report.json.</p>" if len(rows) > ROWS else ""
    return f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>{more}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"
    return ", ".join(map(_cell, value)) if isinstance(value, (list, tuple)) else str(value)


def _words(key: str, report: dict[str, Any]) -> str:
    return {"massive": _massive, "channels": _channels, "tokens": _tokens, "errors": _errors}.get(key, lambda _: "")(
        report
    )


def _massive(report: dict[str, Any]) -> str:
    massive, criteria = report["massive"], report["criteria"]
    rule = (
        f"<p class='note'>An entry counts when |x| &gt; {criteria['absolute']:g} and |x| &ge; "
        f"{criteria['ratio_at_this_width']:g} times the median ({criteria['ratio']:g} at width 4096).</p>"
    )
    if not massive["channels"]:
        return rule + "<p>None.</p>"
    rows = [
        (
            c["channel"],
            c["value"],
            " ".join(repr(t["text"]) for t in c["tokens"][:4]),
            c["positions"][:6],
            short_name(c["created"]),
            short_name(c["last_massive"]),
            short_name(c["ends"]) if c["ends"] else "stays",
        )
        for c in massive["channels"]
    ]
    found = table(("channel", "value", "tokens", "positions", "created by", "massive until", "ends at"), rows)
    terms = [
        (short_name(place["where"]), one["channel"], *_origin(one))
        for place in massive["created"]
        for one in place["origins"]
    ]
    origins = table(("place", "channel", "source", "weight", "activation", "share"), terms)
    ablation = massive["ablation"]
    if ablation is None:
        return rule + found + origins
    before, after = ablation["perplexity"]
    verdict = "confirmed: none is left" if ablation["confirmed"] else "not confirmed: some are left or come back"
    said = f"<p>Ablation ({escape('; '.join(ablation['removed']))}): {verdict}. Perplexity of that window "
    return rule + found + origins + said + f"{before:.4g} &rarr; {after:.4g}.</p>"


def _origin(one: dict[str, Any]) -> tuple[Any, ...]:
    if "terms" not in one:
        return (f"row {one['row']} ({one['token']!r})", one["weight"], None, 1.0)
    if not one["terms"]:
        return ("diffuse", None, None, one["explained"])
    best = one["terms"][0]
    return (f"column {best['column']} of {len(one['terms'])}", best["weight"], best["activation"], best["share"])


def _channels(report: dict[str, Any]) -> str:
    rows = [
        (
            one["channel"],
            f"{one['places']} of {one['of']}",
            one["ratio"],
            one["share_of_tokens"],
            one["explained_by_gain"],
            one["read_energy_over_median"],
        )
        for one in report["channel_outliers"]
    ]
    said = (
        f"<p class='note'>A channel counts when its median |x| is at least {report['criteria']['channel']:g} times the "
        f"median channel's. Query and key channels that count: {len(report['head_outliers'])}.</p>"
    )
    heads = ("channel", "norms", "largest ratio", "share of tokens", "explained by gain", "read energy / median")
    return said + (table(heads, rows) if rows else "<p>None.</p>")


def _tokens(report: dict[str, Any]) -> str:
    rows = [
        (name, one["massive"], one["common"], one["massive_share"])
        for name, one in report["token_errors"]["methods"].items()
    ]
    return table(("rotation", "massive tokens", "common tokens", "massive share of squared error"), rows)


def _errors(report: dict[str, Any]) -> str:
    rows = [
        (one["what"], one["layer"], short_name(one["part"]), one["stored"], one["error"])
        for one in report["ranking"][:12]
    ]
    return table(("what", "layer", "part", "as stored", "rotated"), rows)


def _recipe(report: dict[str, Any]) -> str:
    items = "".join(f"<li>{escape(reason)}</li>" for reason in report["recommendation"]["reasons"])
    measured = report["measured"]
    if measured is None:
        return f"<ul>{items}</ul><p class='note'>Its perplexity was not measured.</p>"
    rows = [("bf16", measured["bf16"], 1.0, None)]
    rows += [
        (name, one["perplexity"], one["ratio_to_bf16"], one["ratio_ci"]) for name, one in measured["recipes"].items()
    ]
    return f"<ul>{items}</ul>" + table(("recipe", "perplexity", "x bf16", "paired ratio to default"), rows)
