"""Pictures: from the bytes of a file, which are hostile until decoded, to what a vision tower reads.

The one file that imports Pillow, which decodes and does nothing else here. A picture is uint8 [H, W, 3]."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dfrot.errors import InputError, UnsupportedError

MAX_BYTES = 16 << 20  # of a file
MAX_PIXELS = 1 << 24  # 4096 x 4096: 48 MB as a picture
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


def decode_image(data: bytes, where: str) -> Tensor:
    """The picture of an encoded image, turned as its Exif entry says, without transparency; of several frames the
    first. Raises InputError for what is no image, damaged or too large."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise UnsupportedError(f"{where}: images are decoded by Pillow; pip install 'dfq[images]'") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{where}: {len(data)} bytes, an image may have {MAX_BYTES}; make it smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size  # from the header: nothing is unpacked yet
            if not 0 < width * height <= MAX_PIXELS:
                raise InputError(f"{where}: {width} x {height} pixels, an image may have {MAX_PIXELS}; make it smaller")
            turned = ImageOps.exif_transpose(image).convert("RGB")
            raw = bytearray(turned.tobytes())
    except InputError:
        raise
    except Exception as error:  # decoders raise many kinds; all mean that the bytes are no whole image
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({(str(error).splitlines() or [''])[0][:80]})"
        raise InputError(f"{where}: is not a whole {', '.join(FORMATS)} image{reason}") from None
    return torch.frombuffer(raw, dtype=torch.uint8).view(turned.height, turned.width, 3)


def read_image(file: Path, where: str = "") -> Tensor:
    """The picture of an image file. Raises InputError naming it."""
    where = where or str(file)
    try:
        with file.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1) if file.is_file() else b""
    except OSError as error:
        raise InputError(f"{where}: not readable ({error.strerror}); check the file") from None
    return decode_image(data, where)


def normalized_pixels(picture: Tensor, size: int) -> Tensor:
    """float32 [3, size, size] in -1 .. 1: what the tower reads, the whole picture scaled to a square."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != torch.uint8:
        raise InputError(f"a picture is uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}")
    found = picture.permute(2, 0, 1).float()
    if found.shape[1:] != (size, size):
        found = interpolate(found[None], (size, size), mode="bilinear", antialias=True)[0]
    return found / 127.5 - 1
