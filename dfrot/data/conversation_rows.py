"""Rows of a .jsonl as conversations: messages and images by path, which are hostile until checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.data.images import read_image
from dfrot.data.unicode_text import check_unicode
from dfrot.errors import InputError, UnsupportedError

IMAGE_MARK = "<image>"  # in a text, marks the place of one image
MAX_IMAGES = 16  # of one row


def refuse_images(row: dict[str, Any], location: str) -> None:
    """Raise UnsupportedError for a row with images, where the model takes none."""
    messages = row.get("messages") if isinstance(row.get("messages"), list) else []
    contents = [message.get("content") for message in messages or [] if isinstance(message, dict)]
    multimodal = any(not isinstance(content, str) for content in contents if content is not None)
    if row.get("images") or row.get("image") or multimodal:
        raise UnsupportedError(f"{location}: holds images or parts other than text; give a VLM")


def parse_conversation(row: dict[str, Any], root: Path, location: str) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """The messages and images of a row.

    Args:
        row: `messages`, or `prompt` (its images in front unless marked), and `images`, if it has any: paths relative to
            `root`, which they must not leave. Places of images are parts of the type image, or `<image>` in a text.
        root: folder of the images.
        location: of the row, for messages of errors.

    Returns messages whose contents are lists of parts ({"type": "text", "text"} or {"type": "image"}), and the images
    uint8 [H, W, 3] in the order of their places. Raises InputError that begins with `location`."""
    paths = row.get("images", [])
    valid = isinstance(paths, list) and all(isinstance(path, str) for path in paths)
    if not valid or ("images" in row and not paths):
        raise InputError(f'{location}: "images" must be a list of paths, or left out; mend or remove the line')
    if len(paths) > MAX_IMAGES:
        raise InputError(f"{location}: {len(paths)} images; {MAX_IMAGES} at most", limit=MAX_IMAGES)
    messages = _parse_messages(row, len(paths), location)
    places = sum(part["type"] == "image" for message in messages for part in message["content"])
    if places != len(paths):
        raise InputError(
            f"{location}: {places} places for images ({IMAGE_MARK} or parts of the type image), {len(paths)} images; "
            "give one place to each"
        )
    return messages, [_read_image(path, root, location) for path in paths]


def _parse_messages(row: dict[str, Any], images: int, location: str) -> list[dict[str, Any]]:
    messages = row.get("messages")
    if messages is None and isinstance(row.get("prompt"), str):
        prompt = row["prompt"]
        messages = [{"role": "user", "content": prompt if IMAGE_MARK in prompt else IMAGE_MARK * images + prompt}]
    if not isinstance(messages, list) or not messages:
        raise InputError(f'{location}: "messages" must be a list of role and content; mend or remove the line')
    return [_parse_message(message, location) for message in messages]


def _parse_message(message: Any, location: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InputError(f"{location}: a message is an object of role and content; mend or remove the line")
    content, parts = message.get("content"), []
    if isinstance(content, str):
        check_unicode(content, location)
        for number, text in enumerate(content.split(IMAGE_MARK)):
            parts += ([{"type": "image"}] if number else []) + ([{"type": "text", "text": text}] if text else [])
    elif isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "image") or (kind == "text" and not isinstance(part.get("text"), str)):
                raise InputError(f"{location}: parts of a message are of the type text or image, not {kind!r}")
            parts.append(
                {"type": "text", "text": check_unicode(part["text"], location)} if kind == "text" else {"type": "image"}
            )
    else:
        raise InputError(f"{location}: content must be text or a list of parts; mend or remove the line")
    return {"role": message["role"], "content": parts}


def _read_image(path: str, root: Path, location: str) -> Tensor:
    """Raises InputError for a path that leaves `root`, links followed."""
    try:
        file = (root / path).resolve()
        inside = file.is_relative_to(root.resolve()) and not Path(path).is_absolute()
    except (OSError, ValueError, RuntimeError):  # a loop of links, a null byte
        inside = False
    if not inside:
        raise InputError(f"{location}: image {path!r} is not a path inside the folder of the file; put it there")
    if not file.is_file():
        raise InputError(f"{location}: image {path!r}: no such file")
    return read_image(file, f"{location}: image {path!r}")
