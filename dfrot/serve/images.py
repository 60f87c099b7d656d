"""Images in messages: `image_url` parts with the image itself in a data: URI. Nothing is ever fetched."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from dfrot.data.conversation_rows import MAX_IMAGES
from dfrot.data.images import MAX_BYTES
from dfrot.serve.errors import bad_request

_HEAD = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)


def image_of(part: dict[str, Any], where: str) -> bytes:
    """The encoded image of a part {"type": "image_url", "image_url": {"url"}}. Raises ApiError naming the field."""
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(url, str) or set(part) - {"type", "image_url"}:
        raise bad_request(
            f'{where}: needs "image_url": {{"url": "data:image/png;base64,..."}} and nothing else', "messages"
        )
    if extra := {key for key, value in given.items() if value is not None} - {"url", "detail"}:
        raise bad_request(
            f"{where}.image_url.{sorted(extra)[0]}: is not supported", "messages", "unsupported_parameter"
        )
    if given.get("detail") not in (None, "auto"):
        raise bad_request(f"{where}.image_url.detail: only auto is supported: images are seen in one size", "messages")
    head = _HEAD.match(url)
    if head is None:
        raise bad_request(
            f"{where}.image_url.url: this server fetches nothing; send the image itself: data:image/png;base64,...",
            "messages",
            "unsupported_image_url",
        )
    if len(url) - head.end() > MAX_BYTES * 4 // 3 + 4:
        raise bad_request(f"{where}: the image is larger than {MAX_BYTES} bytes", "messages", "image_too_large")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise bad_request(f"{where}.image_url.url: is not base64", "messages", "invalid_image") from None


def check_count(count: int) -> None:
    """Raises ApiError for too many images."""
    if count > MAX_IMAGES:
        raise bad_request(f"messages: {count} images; {MAX_IMAGES} at most", "messages", "too_many_images")
