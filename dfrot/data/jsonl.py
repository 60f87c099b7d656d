"""Rows of a .jsonl: text, conversations, images by path. Files are hostile until checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.data import images as pixels
from dfrot.errors import InputError, UnsupportedError

MARK = "<image>"  # what may stand for an image in a text, one for each
MAX_IMAGES = 16  # of one row


def read_json_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The JSON objects of a .jsonl, one per line, each with where it stands: "FILE, line N". Raises InputError."""
    try:
        with path.open(encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
                    raise InputError(f"{where}: not JSON ({error}); mend or remove the line") from None
                if not isinstance(row, dict):
                    raise InputError(f"{where}: not a JSON object; mend or remove the line")
                yield row, where
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from None


def first_json_line(path: Path) -> dict[str, Any]:
    """Raises InputError for a file without rows."""
    for row, _ in read_json_lines(path):
        return row
    raise InputError(f"{path}: holds no rows")


def refuse_images(row: dict[str, Any], where: str) -> None:
    """Raise UnsupportedError for a row with images, where the model takes none."""
    messages = row.get("messages") if isinstance(row.get("messages"), list) else []
    parts = [message.get("content") for message in messages or [] if isinstance(message, dict)]
    if row.get("images") or row.get("image") or any(not isinstance(part, str) for part in parts if part is not None):
        raise UnsupportedError(f"{where}: holds images or parts other than text; give a model that sees")


def parse_conversation(row: dict[str, Any], root: Path, where: str) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Messages whose contents are lists of parts ({"type": "text", "text"} or {"type": "image"}), and the row's
    pictures uint8 [H, W, 3], in the order of their places.

    The row: `messages`, or `prompt` (its images in front unless marked), and `images`, where it has any: paths relative
    to `root`, which they must not leave. Places are parts of the type image or `<image>` in a text. Raises InputError
    naming `where`."""
    paths = row.get("images", [])
    whole = isinstance(paths, list) and all(isinstance(path, str) for path in paths)
    if not whole or ("images" in row and not paths):
        raise InputError(f'{where}: "images" must be a list of paths, or left out; mend or remove the line')
    if len(paths) > MAX_IMAGES:
        raise InputError(f"{where}: {len(paths)} images; {MAX_IMAGES} at most")
    messages = _messages(row, len(paths), where)
    places = sum(part["type"] == "image" for message in messages for part in message["content"])
    if places != len(paths):
        raise InputError(
            f"{where}: {places} places for images ({MARK} or parts of the type image), {len(paths)} images; give one "
            "place to each"
        )
    return messages, [_picture(path, root, where) for path in paths]


def _messages(row: dict[str, Any], images: int, where: str) -> list[dict[str, Any]]:
    found = row.get("messages")
    if found is None and isinstance(row.get("prompt"), str):
        prompt = row["prompt"]
        found = [{"role": "user", "content": prompt if MARK in prompt else MARK * images + prompt}]
    if not isinstance(found, list) or not found:
        raise InputError(f'{where}: "messages" must be a list of role and content; mend or remove the line')
    return [_message(message, where) for message in found]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InputError(f"{where}: a message is an object of role and content; mend or remove the line")
    content, parts = message.get("content"), []
    if isinstance(content, str):
        for number, text in enumerate(content.split(MARK)):
            parts += ([{"type": "image"}] if number else []) + ([{"type": "text", "text": text}] if text else [])
    elif isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "image") or (kind == "text" and not isinstance(part.get("text"), str)):
                raise InputError(f"{where}: parts of a message are of the type text or image, not {kind!r}")
            parts.append({"type": "text", "text": part["text"]} if kind == "text" else {"type": "image"})
    else:
        raise InputError(f"{where}: content must be text or a list of parts; mend or remove the line")
    return {"role": message["role"], "content": parts}


def _picture(path: str, root: Path, where: str) -> Tensor:
    """Raises InputError for a path that leaves `root`, links followed."""
    try:
        file = (root / path).resolve()
        inside = file.is_relative_to(root.resolve()) and not Path(path).is_absolute()
    except (OSError, ValueError, RuntimeError):  # a loop of links, a null byte
        inside = False
    if not inside:
        raise InputError(f"{where}: image {path!r} is not a path inside the folder of the file; put it there")
    if not file.is_file():
        raise InputError(f"{where}: image {path!r}: no such file")
    return pixels.read_image(file, f"{where}: image {path!r}")
