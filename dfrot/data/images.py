"""Images: from the bytes of a file, which are hostile until decoded, to the pixels that a vision tower reads.

The one file that imports Pillow, which decodes and does nothing else here. An image is uint8 [H, W, 3]."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dfrot.errors import InputError, UnsupportedError

MAX_BYTES = 16 << 20  # of a file
MAX_PIXELS = 1 << 24  # 4096 x 4096: 48 MB decoded
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


def decode_image(data: bytes, location: str) -> Tensor:
    """The image uint8 [H, W, 3] of encoded bytes: rotated as its Exif entry says, without transparency, the first of
    several frames.

    Raises InputError, beginning with `location`, for bytes that are no image, damaged or too large; UnsupportedError
    without Pillow."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise UnsupportedError(f"{location}: images are decoded by Pillow; pip install 'dfq[images]'") from None
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{location}: {len(data)} bytes, an image may have {MAX_BYTES}; make it smaller", limit=MAX_BYTES
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size  # from the header: nothing is unpacked yet
            if not 0 < width * height <= MAX_PIXELS:
                raise InputError(
                    f"{location}: {width} x {height} pixels, an image may have {MAX_PIXELS}; make it smaller",
                    limit=MAX_PIXELS,
                )
            upright = ImageOps.exif_transpose(image).convert("RGB")
            raw = bytearray(upright.tobytes())
    except InputError:
        raise
    except Exception as error:  # decoders raise many kinds; all mean that the bytes are no complete image
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({(str(error).splitlines() or [''])[0][:80]})"
        raise InputError(f"{location}: is not a whole {', '.join(FORMATS)} image{reason}") from None
    return torch.frombuffer(raw, dtype=torch.uint8).view(upright.height, upright.width, 3)


def read_image(file: Path, location: str = "") -> Tensor:
    """The image uint8 [H, W, 3] of a file. Raises InputError that begins with `location`, or with the file's path."""
    location = location or str(file)
    try:
        with file.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1) if file.is_file() else b""
    except OSError as error:
        raise InputError(f"{location}: not readable ({error.strerror}); check the file", file=file) from None
    return decode_image(data, location)


def normalized_pixels(image: Tensor, size: int) -> Tensor:
    """float32 [3, size, size] in -1 .. 1: the input of the vision tower, the whole image scaled to a square.

    Raises InputError unless `image` is uint8 [H, W, 3]."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != torch.uint8:
        raise InputError(f"an image is uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    normalized_pixels = image.permute(2, 0, 1).float()
    if normalized_pixels.shape[1:] != (size, size):
        normalized_pixels = interpolate(normalized_pixels[None], (size, size), mode="bilinear", antialias=True)[0]
    return normalized_pixels / 127.5 - 1
