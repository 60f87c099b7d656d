"""The report's pictures, from its own numbers: every one is an SVG, maps are PNG files as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dfrot.outliers.report import svg

METHOD_COLOURS = {"none": "#6b6b6b", "orthogonal": "#D55E00", "hadamard": "#0072B2", "refined": "#009E73"}
SHOWN_STATES = 4  # maps of the stream in the page, whatever the depth of the model


@dataclass(frozen=True)
class Figure:
    """name: of its files; group: section of the page; caption: what to look for; png: maps only."""

    name: str
    group: str
    svg: str
    caption: str
    png: bytes | None = None


def short_name(state: str) -> str:
    """`model.layers.3.mlp.down_proj` -> `3 down_proj`."""
    parts = state.split(".")
    layer = next((part for part in parts if part.isdigit()), "")
    return f"{layer} {parts[-1]}".strip()


def all_figures(report: dict[str, Any], maps: dict[str, Any]) -> list[Figure]:
    """In the order of the page."""
    found = [*_massive(report), *_stream(report, maps), *_channels(report), *_sinks(report), *_tokens(report, maps)]
    return [*found, *_errors(report)]


def _massive(report: dict[str, Any]) -> list[Figure]:
    states = report["massive"]["states"]
    ratio = report["criteria"]["ratio_at_this_width"]
    absolute = report["criteria"]["absolute"]
    at = list(range(len(states)))
    limits = [(float(i), max(absolute, ratio * s["median"])) for i, s in zip(at, states)]
    ticks = _ticks([short_name(s["state"]) for s in states])
    chart = svg.line_chart(
        "Largest and median |x| of the residual stream",
        [
            svg.Series("largest", [(float(i), abs(s["max"])) for i, s in zip(at, states)], dots=len(at) < 40),
            svg.Series("median", [(float(i), s["median"]) for i, s in zip(at, states)], dots=len(at) < 40),
            svg.Series("massive above", limits, "#b0b0b0"),
        ],
        "written by",
        "|x|",
        log=True,
        x_ticks=ticks,
    )
    figures = [
        Figure("massive-by-layer", "massive", chart, "Above the grey line an entry counts as a massive activation.")
    ]
    channels = report["massive"]["channels"][:6]
    if channels:
        series = [
            svg.Series(
                f"channel {c['channel']}", [(float(i), abs(v)) for i, v in enumerate(c["values"]) if v is not None]
            )
            for c in channels
        ]
        travel = svg.line_chart("How massive activations travel", series, "written by", "|x|", log=True, x_ticks=ticks)
        figures.append(Figure("massive-travel", "massive", travel, "Median over the tokens that carry the channel."))
    return figures


def _ticks(names: list[str], most: int = 5) -> list[tuple[float, str]]:
    steps = max(1, (len(names) - 1) // (most - 1)) if len(names) > 1 else 1
    return [(float(i), names[i].replace("_proj", "").replace("_tokens", "")) for i in range(0, len(names), steps)]


def _stream(report: dict[str, Any], maps: dict[str, Any]) -> list[Figure]:
    states = maps["states"]
    stream = [s["state"] for s in report["massive"]["states"] if s["state"] in states]
    born = [one["where"] for one in report["massive"]["created"] if one["where"] in stream]
    wanted = [stream[0], *born[:1], stream[1], stream[len(stream) // 2], stream[-1]]
    chosen = list(dict.fromkeys(wanted))[:SHOWN_STATES]
    shown = [(f"stream-{name}", f"stream behind {short_name(name)}", states[name]) for name in chosen]
    shown += [(f"input-{name}", f"input of {short_name(name)}", data) for name, data in maps["inputs"].items()]
    peak = states[born[0] if born else chosen[1]]["values"]
    figures = [
        Figure("relief", "maps", svg.relief_chart("The stream in relief (linear)", peak), "Later tokens stand behind.")
    ]
    for name, title, data in shown:
        axes = ("channel", 0, data["channels"] - 1), ("token", 0, data["tokens"] - 1)
        chart, png = svg.heat_map(f"|activation|, {title}", data["values"], *axes)
        figures.append(Figure(name, "maps", chart, "Each pixel is the maximum of its cell; logarithmic.", png))
    return figures


def _channels(report: dict[str, Any]) -> list[Figure]:
    layers = report["layers"]
    limit = report["criteria"]["channel"]
    figures = []
    for norm in layers[0]["norms"]:
        curves = [layer["norms"][norm] for layer in layers]
        worst = max(curves, key=lambda one: one["curve"][0])
        series = [
            svg.Series("with gain", [(float(i + 1), v) for i, v in enumerate(worst["curve"])]),
            svg.Series("without gain", [(float(i + 1), v) for i, v in enumerate(worst["curve_without_gain"])]),
            svg.Series("outlier above", [(1.0, limit), (float(len(worst["curve"])), limit)], "#b0b0b0"),
        ]
        title = f"Channels of {short_name(norm)}, layer {curves.index(worst)}"
        chart = svg.line_chart(title, series, "channels by size", "ratio", log=True)
        caption = "Median |x| of a channel over the median channel's; the layer with the largest."
        figures.append(Figure(f"channels-{norm}", "channels", chart, caption))
    return figures


def _sinks(report: dict[str, Any]) -> list[Figure]:
    layers = report["layers"]
    heads = report["model"]["heads"]
    figures = []
    for key, title, row in (
        ("first", "Attention to the first token", lambda one: [head[0] for head in one["first"]]),
        ("massive", "Attention to massive tokens", lambda one: one["massive"]),
    ):
        values = [row(layer["sinks"]) for layer in layers]
        chart, png = svg.heat_map(
            title, values, ("head", 0, heads - 1), ("layer", 0, len(layers) - 1), log=False, low=0.0, high=1.0
        )
        figures.append(Figure(f"sinks-{key}", "sinks", chart, "Mean share of attention, per head and layer.", png))
    return figures


def _tokens(report: dict[str, Any], maps: dict[str, Any]) -> list[Figure]:
    errors = report["token_errors"]
    figures = []
    for kind in ("massive", "common"):
        series = []
        for name, found in errors["methods"].items():
            curve = found["curves"][kind]
            last = max(len(curve) - 1, 1)
            points = [(100.0 * i / last, v) for i, v in enumerate(curve)]
            series.append(svg.Series(name, points, METHOD_COLOURS.get(name, "")))
        if any(one.points for one in series):
            title = f"{errors['bits']}-bit error of {kind} tokens"
            chart = svg.line_chart(title, series, "tokens sorted by error (%)", "error / norm")
            figures.append(
                Figure(f"errors-{kind}", "tokens", chart, "RMSNorm outputs without gain, tokens not fitted on.")
            )
    for name, data in (maps.get("turned") or {}).items():
        chart, png = svg.heat_map(
            f"Norm output, rotation: {name}",
            data["values"],
            ("channel", 0, data["channels"] - 1),
            ("token", 0, data["tokens"] - 1),
            log=False,
            high=min(max(max(row) for row in data["values"]), 16.0),
        )
        caption = "The same tokens before and after; bright rows are massive tokens. Cut off at 16."
        figures.append(Figure(f"rotated-{name}", "tokens", chart, caption, png))
    return figures


def _errors(report: dict[str, Any]) -> list[Figure]:
    rows = [
        (f"{one['what']} {short_name(one['part'])}"[:26], (one["stored"], one["error"]))
        for one in report["by_kind"][:16]
    ]
    labels = ("as stored", "Hadamard") if report["model"]["kind"] == "original" else ("as stored", "best basis")
    chart = svg.bar_chart("4-bit output error by part, mean over layers", rows, labels, log=True)
    figures = [Figure("parts", "errors", chart, "What the next computation sees of the rounding; logarithmic.")]
    taps = list(report["layers"][0]["taps"])
    series = []
    for tap in taps:
        found = [layer["taps"][tap]["activations"] for layer in report["layers"]]
        points = [(float(i), one.get("hadamard", one["none"])["output"]) for i, one in enumerate(found)]
        series.append(svg.Series(short_name(tap), points, dots=len(found) < 40))
    chart = svg.line_chart("4-bit activations: output error by layer", series, "layer", "relative", log=True)
    figures.append(Figure("activations-by-layer", "errors", chart, "In the rotated basis where one was measured."))
    kv = []
    for side in ("keys", "values"):
        found = [layer["kv"][side] for layer in report["layers"]]
        points = [(float(i), one.get("hadamard", one["none"])["relative"]) for i, one in enumerate(found)]
        kv.append(svg.Series(side, points, dots=len(found) < 40))
    chart = svg.line_chart("4-bit KV cache: error by layer", kv, "layer", "relative", log=True)
    figures.append(Figure("kv-by-layer", "errors", chart, "Without massive tokens."))
    return figures
