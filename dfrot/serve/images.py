"""Images in messages: `image_url` parts that hold the image itself in a data: URI. Nothing is fetched."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from dfrot.data.conversation_rows import MAX_IMAGES
from dfrot.data.images import MAX_BYTES
from dfrot.serve.errors import bad_request

_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)


def image_of(part: dict[str, Any], where: str) -> bytes:
    """The encoded image of a part {"type": "image_url", "image_url": {"url": ...}}. where: the part's name in messages.

    Raises ApiError for anything but a base64 data URI of an image of at most MAX_BYTES."""
    image_url = part.get("image_url")
    url = image_url.get("url") if isinstance(image_url, dict) else None
    if not isinstance(image_url, dict) or not isinstance(url, str) or set(part) - {"type", "image_url"}:
        raise bad_request(
            f'{where}: needs "image_url": {{"url": "data:image/png;base64,..."}} and nothing else', "messages"
        )
    if extra := {key for key, value in image_url.items() if value is not None} - {"url", "detail"}:
        raise bad_request(
            f"{where}.image_url.{sorted(extra)[0]}: is not supported", "messages", "unsupported_parameter"
        )
    if image_url.get("detail") not in (None, "auto"):
        raise bad_request(f"{where}.image_url.detail: only auto is supported: images have one size", "messages")
    scheme = _DATA_URI.match(url)
    if scheme is None:
        raise bad_request(
            f"{where}.image_url.url: this server fetches nothing; send the image itself: data:image/png;base64,...",
            "messages",
            "unsupported_image_url",
        )
    if len(url) - scheme.end() > MAX_BYTES * 4 // 3 + 4:  # base64 has four characters per three bytes
        raise bad_request(f"{where}: the image is larger than {MAX_BYTES} bytes", "messages", "image_too_large")
    try:
        return base64.b64decode(url[scheme.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise bad_request(f"{where}.image_url.url: is not base64", "messages", "invalid_image") from None


def check_count(count: int) -> None:
    """Raises ApiError for too many images."""
    if count > MAX_IMAGES:
        raise bad_request(f"messages: {count} images; {MAX_IMAGES} at most", "messages", "too_many_images")
