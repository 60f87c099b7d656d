"""Heat maps as PNG, without an imaging library: 8-bit palette, one pixel block per value, the same bytes every time."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence

# anchors of a perceptually ordered map: near-black, violet, red, orange, pale yellow
ANCHORS = ((12, 10, 38), (75, 16, 109), (160, 42, 98), (225, 90, 52), (251, 172, 33), (252, 255, 200))


def palette() -> list[tuple[int, int, int]]:
    """256 colours, interpolated between the anchors."""
    colours = []
    for i in range(256):
        place = i / 255 * (len(ANCHORS) - 1)
        low = min(int(place), len(ANCHORS) - 2)
        part = place - low
        r, g, b = (round(a + (c - a) * part) for a, c in zip(ANCHORS[low], ANCHORS[low + 1]))
        colours.append((r, g, b))
    return colours


def palette_indices(values: Sequence[Sequence[float]], low: float, high: float, log: bool) -> list[bytes]:
    """Rows of palette indices of values between low and high; `log` needs low > 0."""
    if log:
        base, span = math.log(low), max(math.log(high) - math.log(low), 1e-12)
        return [bytes(_index((math.log(max(v, low)) - base) / span) for v in row) for row in values]
    return [bytes(_index((v - low) / max(high - low, 1e-12)) for v in row) for row in values]


def _index(share: float) -> int:
    return max(0, min(255, round(255 * share)))


def encode_png(rows: Sequence[bytes], zoom: int = 1) -> bytes:
    """A PNG of rows of palette indices, every value drawn as zoom x zoom pixels."""
    width = len(rows[0]) * zoom
    scan = b"".join((b"\0" + bytes(v for v in row for _ in range(zoom))) * zoom for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, len(rows) * zoom, 8, 3, 0, 0, 0)
    colours = bytes(v for colour in palette() for v in colour)
    body = chunk(b"IHDR", head) + chunk(b"PLTE", colours) + chunk(b"IDAT", zlib.compress(scan, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
