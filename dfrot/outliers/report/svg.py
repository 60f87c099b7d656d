"""Charts as SVG text: lines, bars, maps with axes, and a relief, in a size whose labels stay readable on a phone."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dfrot.outliers.report.png import encode_png, palette, palette_indices

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 54, 44
LEGEND_COLUMNS, LEGEND_ROW = 3, 18  # entries per row, height of a row
SCALE_STEPS = 32  # of a colour scale
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#6b6b6b", "#CC79A7", "#E69F00")
FONT = "font-family='system-ui,sans-serif' font-size='13' fill='#222'"


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    label: str
    """Its entry in the legend."""
    points: Sequence[tuple[float, float]]
    """(x, y) in order of x."""
    colour: str = ""
    """CSS colour; empty: the next of COLOURS."""
    dots: bool = False
    """Draw the points too."""


def figure(body: str, title: str, height: int = HEIGHT) -> str:
    """An SVG document around `body`, with its title visible and for screen readers."""
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' role='img' width='100%'>"
        f"<title>{escape(title)}</title><rect width='{WIDTH}' height='{height}' fill='#fff'/>"
        f"<text x='{LEFT - 46}' y='18' {FONT} font-weight='600'>{escape(title)}</text>{body}</svg>"
    )


def text(x: float, y: float, words: str, anchor: str = "middle", attributes: str = "") -> str:
    """A text element; anchor: start, middle or end."""
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {FONT} {attributes}>{escape(words)}</text>"


def axis_number(value: float) -> str:
    """A number in the short form of axis labels."""
    magnitude = abs(value)
    if magnitude and (magnitude < 1e-3 or magnitude >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.0f}" if magnitude >= 1e3 else f"{value:.4g}"


class Axes:
    """A plot area with ticks; x is linear, y linear or logarithmic."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], log: bool, height: int = HEIGHT) -> None:
        """x, y: smallest and largest value; a logarithmic y is widened to whole decades."""
        self.x, self.log, self.height = (x[0], max(x[1], x[0] + 1e-9)), log, height
        low, high = y
        if log:
            low = 10 ** math.floor(math.log10(max(low, 1e-12)))
            high = 10 ** math.ceil(math.log10(max(high, low * 1.01)))
        elif high <= low:
            high = low + 1
        self.y = (low, high)

    def position(self, x: float, y: float) -> tuple[float, float]:
        """Page coordinates of a point."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        low, high = self.y
        if self.log:
            up = (math.log10(max(y, low)) - math.log10(low)) / (math.log10(high) - math.log10(low))
        else:
            up = (y - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), self.height - BOTTOM - up * (self.height - TOP - BOTTOM)

    def draw(self, x_label: str, y_label: str, x_ticks: Sequence[tuple[float, str]] | None = None) -> str:
        """Grid, ticks and labels."""
        low, high = self.y
        if self.log:
            decades = round(math.log10(high / low))
            y_ticks = [low * 10**k for k in range(0, decades + 1, max(1, decades // 5))]
        else:
            y_ticks = [low + (high - low) * k / 4 for k in range(5)]
        out = []
        for value in y_ticks:
            x, y = self.position(self.x[0], value)
            out.append(f"<line x1='{x:.1f}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='#ddd'/>")
            out.append(text(x - 5, y + 4, axis_number(value), "end"))
        if x_ticks is None:
            span = self.x[1] - self.x[0]
            values = [self.x[0] + span * k / 4 for k in range(5)]
            if span >= 4 and all(float(value).is_integer() for value in self.x):
                values = sorted({float(round(value)) for value in values})
            x_ticks = [(value, axis_number(value)) for value in values]
        for value, label in x_ticks:
            x, y = self.position(value, low)
            at_edge = x > WIDTH - RIGHT - 20 and len(label) > 4
            out.append(text(WIDTH - 2 if at_edge else x, y + 16, label, "end" if at_edge else "middle"))
        out.append(text((LEFT + WIDTH) / 2, self.height - 8, x_label))
        out.append(text(LEFT - 46, 36, y_label, "start", "opacity='0.75'"))
        return "".join(out)


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    x_ticks: Sequence[tuple[float, str]] | None = None,
) -> str:
    """A line chart with its legend at the bottom. log: of the y axis, which leaves out values that are not positive."""
    points = [point for line in series for point in line.points if not log or point[1] > 0]
    xs, ys = [x for x, _ in points] or [0.0], [y for _, y in points] or [1.0]
    rows = -(-len(series) // LEGEND_COLUMNS)
    height = HEIGHT + LEGEND_ROW * rows + 4
    axes = Axes((min(xs), max(xs)), (min(ys) if log else min(0.0, min(ys)), max(ys)), log, HEIGHT)
    out = [axes.draw(x_label, y_label, x_ticks)]
    for i, line in enumerate(series):
        colour = line.colour or COLOURS[i % len(COLOURS)]
        positions = [axes.position(x, y) for x, y in line.points if not log or y > 0]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in positions)
        out.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        if line.dots or len(positions) == 1:
            out += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>" for x, y in positions]
        row, column = divmod(i, LEGEND_COLUMNS)
        x, y = LEFT - 40 + column * 150, height - LEGEND_ROW * (rows - row) + 11
        out.append(
            f"<rect x='{x}' y='{y - 9}' width='14' height='4' fill='{colour}'/>"
            + text(x + 19, y - 3, line.label, "start")
        )
    return figure("".join(out), title, height)


def bar_chart(title: str, rows: Sequence[tuple[str, Sequence[float]]], labels: Sequence[str], log: bool = False) -> str:
    """Horizontal bars: one group per row (name, values), one colour per label."""
    step = 14 * len(labels) + 8
    height = TOP - 20 + step * len(rows) + 34
    values = [value for _, group in rows for value in group if value > 0] or [1.0]
    low, high = (min(values) / 1.5, max(values)) if log else (0.0, max(values))
    left, room = 190, WIDTH - 190 - 70
    out = []
    for i, (name, group) in enumerate(rows):
        y = TOP - 20 + i * step
        out.append(text(left - 8, y + step / 2 + 1, name, "end"))
        for j, value in enumerate(group):
            share = math.log(max(value, low) / low) / math.log(high / low) if log and high > low else value / high
            length = max(share * room, 1.0)
            out.append(f"<rect x='{left}' y='{y + 14 * j}' width='{length:.1f}' height='11' fill='{COLOURS[j]}'/>")
            out.append(text(left + length + 4, y + 14 * j + 10, axis_number(value), "start", "style='font-size:11px'"))
    for j, label in enumerate(labels):
        out.append(f"<rect x='{20 + 150 * j}' y='{height - 17}' width='14' height='4' fill='{COLOURS[j]}'/>")
        out.append(text(39 + 150 * j, height - 11, label, "start"))
    return figure("".join(out), title, height)


def heat_map(
    title: str,
    values: Sequence[Sequence[float]],
    x: tuple[str, float, float],
    y: tuple[str, float, float],
    *,
    log: bool = True,
    low: float | None = None,
    high: float | None = None,
) -> tuple[str, bytes]:
    """A map of `values` [rows][columns] as SVG (with the pixels embedded) and as a plain PNG.

    x, y: label, first and last value of the axis. low, high: ends of the colour scale; None: from the values."""
    flat = sorted(value for row in values for value in row)
    high = max(flat[-1] if high is None else high, 1e-12)
    if low is None:
        low = max(flat[len(flat) // 20], high / 1e5) if log else 0.0
    low = min(low, high / 1.001) if log else low
    pixels = palette_indices(values, low, high, log)
    uri = "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode()
    width, height = WIDTH - LEFT - 70, HEIGHT - TOP - BOTTOM
    out = [
        f"<image x='{LEFT}' y='{TOP}' width='{width}' height='{height}' preserveAspectRatio='none' "
        f"style='image-rendering:pixelated' href='{uri}'/>"
    ]
    middle = ((0.5, (x[1] + x[2]) / 2),) if x[2] - x[1] > 8 else ()
    for share, value in ((0, x[1]), *middle, (1, x[2])):
        out.append(text(LEFT + share * width, HEIGHT - BOTTOM + 16, axis_number(math.floor(value))))
    for share, value in ((0, y[1]), (1, y[2])):
        out.append(text(LEFT - 5, TOP + share * height + (10 if share == 0 else 0), axis_number(value), "end"))
    out.append(text(LEFT + width / 2, HEIGHT - 8, x[0]) + text(LEFT - 46, 36, y[0], "start", "opacity='0.75'"))
    out.append(_colour_scale(low, high, log, width, height))
    return figure("".join(out), title), encode_png(pixels, 4)


def _colour_scale(low: float, high: float, log: bool, width: int, height: int) -> str:
    """The colour scale to the right of a map of this size, with its ends and middle labelled."""
    colours, x = palette(), LEFT + width + 10
    step = height / SCALE_STEPS
    out = []
    for i in range(SCALE_STEPS):
        r, g, b = colours[255 - i * 255 // (SCALE_STEPS - 1)]
        out.append(
            f"<rect x='{x}' y='{TOP + i * step:.1f}' width='12' height='{step + 0.5:.1f}' fill='rgb({r},{g},{b})'/>"
        )
    middle = math.sqrt(low * high) if log else (low + high) / 2
    for share, value in ((0, high), (0.5, middle), (1, low)):
        label = axis_number(float(f"{value:.2g}"))
        out.append(text(x + 15, TOP + share * height + 6, label, "start", "style='font-size:11px'"))
    return "".join(out)


def relief_chart(title: str, values: Sequence[Sequence[float]], rows: int = 32, columns: int = 96) -> str:
    """The surface `values` [tokens][channels] seen from the front, later tokens further back, in `rows` x `columns`."""
    tokens, channels = len(values), len(values[0])
    starts = [i * tokens // min(rows, tokens) for i in range(min(rows, tokens))]
    height, out = 340, []
    top = max(max(row) for row in values) or 1.0
    room = WIDTH - 40 - 90
    for depth, start in reversed(list(enumerate(starts))):
        block = values[start : max(start + tokens // len(starts), start + 1)]
        x0, y0 = 20 + 90 * depth / len(starts), height - 40 - 130 * depth / len(starts)
        count = min(columns, channels)
        points = []
        for k in range(count):
            cells = range(k * channels // count, max((k + 1) * channels // count, k * channels // count + 1))
            value = max(row[channel] for row in block for channel in cells)
            points.append(f"{x0 + room * k / max(count - 1, 1):.1f},{y0 - 135 * value / top:.1f}")
        shape = f"{x0:.1f},{y0:.1f} {' '.join(points)} {x0 + room:.1f},{y0:.1f}"
        out.append(f"<polygon points='{shape}' fill='#fff' fill-opacity='0.85' stroke='#0072B2' stroke-width='1'/>")
    out.append(text(20 + room / 2, height - 14, "channel") + text(WIDTH - 14, height - 100, "token", "end"))
    return figure("".join(out) + text(WIDTH - 8, 36, f"highest: {axis_number(top)}", "end"), title, height)
