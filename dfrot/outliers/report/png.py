"""Heat maps as PNG, written without an imaging library so that the same values give the same bytes everywhere.

Images have an 8-bit palette and one block of pixels per value."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence

# anchors of a colour map of growing lightness: near-black, violet, red, orange, pale yellow
ANCHORS = ((12, 10, 38), (75, 16, 109), (160, 42, 98), (225, 90, 52), (251, 172, 33), (252, 255, 200))


def palette() -> list[tuple[int, int, int]]:
    """256 RGB colours, interpolated between the anchors."""
    colours = []
    for i in range(256):
        position = i / 255 * (len(ANCHORS) - 1)
        low = min(int(position), len(ANCHORS) - 2)
        share = position - low
        r, g, b = (round(start + (end - start) * share) for start, end in zip(ANCHORS[low], ANCHORS[low + 1]))
        colours.append((r, g, b))
    return colours


def palette_indices(values: Sequence[Sequence[float]], low: float, high: float, log: bool) -> list[bytes]:
    """Rows of palette indices, one byte per value: 0 at `low`, 255 at `high`. A logarithmic scale needs low > 0."""
    if log:
        base, span = math.log(low), max(math.log(high) - math.log(low), 1e-12)
        return [bytes(_index((math.log(max(value, low)) - base) / span) for value in row) for row in values]
    return [bytes(_index((value - low) / max(high - low, 1e-12)) for value in row) for row in values]


def _index(share: float) -> int:
    return max(0, min(255, round(255 * share)))


def encode_png(rows: Sequence[bytes], zoom: int = 1) -> bytes:
    """A PNG of rows of palette indices, every value drawn as zoom x zoom pixels."""
    width = len(rows[0]) * zoom
    scanlines = b"".join((b"\0" + bytes(index for index in row for _ in range(zoom))) * zoom for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, len(rows) * zoom, 8, 3, 0, 0, 0)
    colours = bytes(component for colour in palette() for component in colour)
    pixels = zlib.compress(scanlines, 9)
    body = chunk(b"IHDR", head) + chunk(b"PLTE", colours) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
