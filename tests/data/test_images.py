"""Encoded images are hostile: whatever is not a whole small image is refused in one line, before it costs memory."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.data import images as pixels
from dfrot.errors import InputError, UnsupportedError

Image = pytest.importorskip("PIL.Image")


def encoded(kind: str = "PNG", size: tuple[int, int] = (6, 4), mode: str = "RGB", **given: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 200 if mode == "L" else tuple([200, 100, 50, 128][: len(mode)])).save(out, kind, **given)
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises many pixels and whose data is a handful of bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 4096)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_formats(kind: str) -> None:
    picture = pixels.decode_image(encoded(kind), "here")
    assert picture.shape == (4, 6, 3)
    assert picture.dtype == torch.uint8
    assert (picture.float().mean((0, 1)) - torch.tensor([200.0, 100.0, 50.0])).abs().max() < 8


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_every_mode_becomes_colours(mode: str) -> None:
    assert pixels.decode_image(encoded(mode=mode), "here").shape == (4, 6, 3)


def test_an_image_is_turned_as_its_exif_entry_says() -> None:
    entry = Image.Exif()
    entry[0x0112] = 6  # the camera was held upright
    assert pixels.decode_image(encoded("JPEG", (6, 4), exif=entry), "here").shape == (6, 4, 3)


HOSTILE = {
    "nothing": b"",
    "text": b"GET / HTTP/1.1",
    "a truncated PNG": encoded(size=(64, 64))[:-30],
    "a truncated JPEG": encoded("JPEG", (64, 64))[:-200],
    "half a head": encoded()[:20],
    "many pixels": bomb(60_000, 60_000),
    "pixels beyond any memory": bomb(2**31 - 1, 2**31 - 1),
    "a promise of more data": bomb(4000, 4000),
    "no pixels": bomb(0, 5),
    "a format that is not taken": encoded("TIFF"),
    "a document": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "too many bytes": bytes(pixels.MAX_BYTES + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError, match="here") as caught:
        pixels.decode_image(HOSTILE[name], "here")
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_files_are_named(tmp_path: Path) -> None:
    for file in (tmp_path / "absent.png", tmp_path):
        with pytest.raises(InputError, match=file.name):
            pixels.read_image(file)


def test_scaling_keeps_the_picture() -> None:
    picture = torch.zeros(40, 80, 3, dtype=torch.uint8)
    picture[:, 40:, 0] = 255
    found = pixels.normalized_pixels(picture, 16)
    assert found.shape == (3, 16, 16)
    assert float(found.min()) == -1
    assert abs(float(found.max()) - 1) < 1e-6
    assert found[0, :, :7].max() < -0.9
    assert found[0, :, 9:].min() > 0.9
    small = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8)
    assert torch.equal(pixels.normalized_pixels(small, 16), small.permute(2, 0, 1).float() / 127.5 - 1)
    with pytest.raises(InputError, match="uint8"):
        pixels.normalized_pixels(small.float(), 16)


def test_without_pillow_the_refusal_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'dfq\[images\]'"):
        pixels.decode_image(b"", "here")
