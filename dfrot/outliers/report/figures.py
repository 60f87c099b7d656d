"""The pictures of a report, drawn from its numbers: each is an SVG, and maps are PNG files as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dfrot.outliers.report import svg

METHOD_COLOURS = {"none": "#6b6b6b", "orthogonal": "#D55E00", "hadamard": "#0072B2", "refined": "#009E73"}
LIMIT_COLOUR = "#b0b0b0"
MAX_STATES = 4  # maps of the stream in the page, whatever the depth of the model
DOTS_BELOW = 40  # points up to which lines have dots
MAX_NORM_OUTPUT = 16.0  # magnitude at which maps of norm outputs saturate


@dataclass(frozen=True)
class Figure:
    """A picture of the report."""

    name: str
    """Stem of its files."""
    group: str
    """Section of the page."""
    svg: str
    """The picture."""
    caption: str
    """What it shows."""
    png: bytes | None = None
    """The pixels, for maps."""


def short_name(state: str) -> str:
    """Layer and last part of a name: `model.layers.3.mlp.down_proj` -> `3 down_proj`."""
    parts = state.split(".")
    layer = next((part for part in parts if part.isdigit()), "")
    return f"{layer} {parts[-1]}".strip()


def all_figures(report: dict[str, Any], maps: dict[str, Any]) -> list[Figure]:
    """All pictures, in the order of the page.

    maps: {"states", "inputs", "rotated"}, name -> what `pool_magnitudes` returns, of states of the stream, of inputs of
    linears, and of norm outputs under each rotation."""
    return [
        *_massive(report),
        *_maps(report, maps),
        *_channels(report),
        *_sinks(report),
        *_token_errors(report),
        *_rotated_maps(maps),
        *_part_errors(report),
    ]


def _massive(report: dict[str, Any]) -> list[Figure]:
    """Largest and median |x| by state, and the values of massive channels by state."""
    states = report["massive"]["states"]
    ratio = report["criteria"]["ratio_at_this_width"]
    absolute = report["criteria"]["absolute"]
    largest = [(float(i), abs(state["max"])) for i, state in enumerate(states)]
    medians = [(float(i), state["median"]) for i, state in enumerate(states)]
    limits = [(float(i), max(absolute, ratio * state["median"])) for i, state in enumerate(states)]
    ticks = _ticks([short_name(state["state"]) for state in states])
    dots = len(states) < DOTS_BELOW
    chart = svg.line_chart(
        "Largest and median |x| of the residual stream",
        [
            svg.Series("largest", largest, dots=dots),
            svg.Series("median", medians, dots=dots),
            svg.Series("massive above", limits, LIMIT_COLOUR),
        ],
        "written by",
        "|x|",
        log=True,
        x_ticks=ticks,
    )
    figures = [Figure("massive-by-layer", "massive", chart, "Entries above the grey line are massive activations.")]
    channels = report["massive"]["channels"][:6]
    if channels:
        series = [
            svg.Series(
                f"channel {channel['channel']}",
                [(float(i), abs(value)) for i, value in enumerate(channel["values"]) if value is not None],
            )
            for channel in channels
        ]
        chart = svg.line_chart("Massive activations by state", series, "written by", "|x|", log=True, x_ticks=ticks)
        figures.append(Figure("massive-travel", "massive", chart, "Median over the tokens that carry the channel."))
    return figures


def _ticks(names: list[str], most: int = 5) -> list[tuple[float, str]]:
    """About `most` evenly spaced ticks with short labels."""
    steps = max(1, (len(names) - 1) // (most - 1)) if len(names) > 1 else 1
    return [(float(i), names[i].replace("_proj", "").replace("_tokens", "")) for i in range(0, len(names), steps)]


def _maps(report: dict[str, Any], maps: dict[str, Any]) -> list[Figure]:
    """A relief of the stream, and maps of the stream and of inputs of linears."""
    states = maps["states"]
    stream = [state["state"] for state in report["massive"]["states"] if state["state"] in states]
    created = [place["where"] for place in report["massive"]["created"] if place["where"] in stream]
    candidates = [stream[0], *created[:1], stream[1], stream[len(stream) // 2], stream[-1]]
    chosen = list(dict.fromkeys(candidates))[:MAX_STATES]
    shown = [(f"stream-{name}", f"stream behind {short_name(name)}", states[name]) for name in chosen]
    shown += [(f"input-{name}", f"input of {short_name(name)}", data) for name, data in maps["inputs"].items()]
    surface = states[created[0] if created else chosen[1]]["values"]
    relief = svg.relief_chart("The stream in relief (linear)", surface)
    figures = [Figure("relief", "maps", relief, "Later tokens are further back.")]
    for name, title, data in shown:
        chart, png = _token_map(f"|activation|, {title}", data)
        figures.append(Figure(name, "maps", chart, "Each pixel is the maximum of its cell; logarithmic.", png))
    return figures


def _token_map(title: str, data: dict[str, Any], **scale: Any) -> tuple[str, bytes]:
    """A map of channels by tokens, as SVG and PNG. scale: of `svg.heat_map`."""
    axes = ("channel", 0, data["channels"] - 1), ("token", 0, data["tokens"] - 1)
    return svg.heat_map(title, data["values"], *axes, **scale)


def _channels(report: dict[str, Any]) -> list[Figure]:
    """Sorted channel ratios of each norm, at the layer with the largest ratio."""
    layers = report["layers"]
    limit = report["criteria"]["channel"]
    figures = []
    for norm in layers[0]["norms"]:
        measured = [layer["norms"][norm] for layer in layers]
        worst = max(measured, key=lambda entry: entry["curve"][0])
        series = [
            svg.Series("with gain", _numbered(worst["curve"])),
            svg.Series("without gain", _numbered(worst["curve_without_gain"])),
            svg.Series("outlier above", [(1.0, limit), (float(len(worst["curve"])), limit)], LIMIT_COLOUR),
        ]
        title = f"Channels of {short_name(norm)}, layer {measured.index(worst)}"
        chart = svg.line_chart(title, series, "channels by size", "ratio", log=True)
        caption = "Median |x| of a channel over the median channel's, in the layer with the largest ratio."
        figures.append(Figure(f"channels-{norm}", "channels", chart, caption))
    return figures


def _numbered(values: list[float]) -> list[tuple[float, float]]:
    """(1, first value), (2, second value), ..."""
    return [(float(i + 1), value) for i, value in enumerate(values)]


def _sinks(report: dict[str, Any]) -> list[Figure]:
    """Maps of attention to the first token and to massive tokens, by head and layer."""
    sinks = [layer["sinks"] for layer in report["layers"]]
    axes = ("head", 0, report["model"]["heads"] - 1), ("layer", 0, len(sinks) - 1)
    rows = {
        "first": ("Attention to the first token", [[head[0] for head in layer["first"]] for layer in sinks]),
        "massive": ("Attention to massive tokens", [layer["massive"] for layer in sinks]),
    }
    figures = []
    for key, (title, values) in rows.items():
        chart, png = svg.heat_map(title, values, *axes, log=False, low=0.0, high=1.0)
        figures.append(Figure(f"sinks-{key}", "sinks", chart, "Mean share of attention, per head and layer.", png))
    return figures


def _token_errors(report: dict[str, Any]) -> list[Figure]:
    """Sorted 4-bit errors of massive and of common tokens under each rotation."""
    errors = report["token_errors"]
    caption = "RMSNorm outputs without gain; tokens that the refinement was not fitted on."
    figures = []
    for kind in ("massive", "common"):
        series = []
        for name, method in errors["methods"].items():
            curve = method["curves"][kind]
            last = max(len(curve) - 1, 1)
            points = [(100.0 * i / last, value) for i, value in enumerate(curve)]
            series.append(svg.Series(name, points, METHOD_COLOURS.get(name, "")))
        if any(line.points for line in series):
            title = f"{errors['bits']}-bit error of {kind} tokens"
            chart = svg.line_chart(title, series, "tokens sorted by error (%)", "error / norm")
            figures.append(Figure(f"errors-{kind}", "tokens", chart, caption))
    return figures


def _rotated_maps(maps: dict[str, Any]) -> list[Figure]:
    """Maps of the same norm outputs under each rotation."""
    caption = "The same tokens before and after rotation; bright rows are massive tokens. Values above 16 look alike."
    figures = []
    for name, data in (maps.get("rotated") or {}).items():
        high = min(max(max(row) for row in data["values"]), MAX_NORM_OUTPUT)
        chart, png = _token_map(f"Norm output, rotation: {name}", data, log=False, high=high)
        figures.append(Figure(f"rotated-{name}", "tokens", chart, caption, png))
    return figures


def _part_errors(report: dict[str, Any]) -> list[Figure]:
    """4-bit errors by part of the model, and by layer."""
    layers = report["layers"]
    rows = [
        (f"{row['what']} {short_name(row['part'])}"[:26], (row["stored"], row["error"]))
        for row in report["by_kind"][:16]
    ]
    labels = ("as stored", "Hadamard") if report["model"]["kind"] == "original" else ("as stored", "best basis")
    chart = svg.bar_chart("4-bit output error by part, mean over layers", rows, labels, log=True)
    figures = [Figure("parts", "errors", chart, "Rounding error in the output of what reads the part; logarithmic.")]
    taps = [
        _by_layer(short_name(tap), [layer["taps"][tap]["activations"] for layer in layers], "output")
        for tap in layers[0]["taps"]
    ]
    chart = svg.line_chart("4-bit activations: output error by layer", taps, "layer", "relative", log=True)
    figures.append(Figure("activations-by-layer", "errors", chart, "In the rotated basis where it was measured."))
    kv = [_by_layer(side, [layer["kv"][side] for layer in layers], "relative") for side in ("keys", "values")]
    chart = svg.line_chart("4-bit KV cache: error by layer", kv, "layer", "relative", log=True)
    figures.append(Figure("kv-by-layer", "errors", chart, "Without massive tokens."))
    return figures


def _by_layer(label: str, errors: list[dict[str, Any]], key: str) -> svg.Series:
    """A line of one error by layer, in the Hadamard basis where it was measured."""
    points = [(float(i), layer.get("hadamard", layer["none"])[key]) for i, layer in enumerate(errors)]
    return svg.Series(label, points, dots=len(errors) < DOTS_BELOW)
