"""Conversations about images, before they are encoded: rows of a .jsonl, or drawn ones (`shapes`)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dfrot.data import shapes
from dfrot.data.conversation_rows import parse_conversation
from dfrot.data.jsonl import read_json_lines

Row = tuple[list[dict[str, Any]], list[Tensor], str]
"""Messages, pictures uint8 [H, W, 3] in the order of their parts, and the row's name in error messages."""


def question(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages before the first answer."""
    return list(itertools.takewhile(lambda message: message.get("role") != "assistant", messages))


def images_in(messages: Sequence[dict[str, Any]]) -> int:
    """Number of image parts in messages whose contents are texts or lists of parts."""
    lists = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return sum(part["type"] == "image" for parts in lists for part in parts)


def has_images(dataset: str) -> bool:
    """Whether a dataset has images: `shapes`, or a .jsonl with an `images` key in some row."""
    path = Path(dataset)
    if dataset == shapes.NAME or path.suffix != ".jsonl" or not path.is_file():
        return dataset == shapes.NAME
    status = path.stat()
    return _holds_images(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=8)
def _holds_images(path: Path, *_: int) -> bool:
    """Cached until the file's time or size changes, so that the file is read once per run."""
    return any("images" in row for row, _ in read_json_lines(path))


def drawn_conversation(seed: int) -> Row:
    """A drawn picture with a question and its answer."""
    sample = shapes.sample(seed)
    content = [{"type": "image"}, {"type": "text", "text": sample.question}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": sample.answer},
    ]
    return messages, [sample.picture], f"{shapes.NAME} {seed}"


def conversation_row(row: dict[str, Any], root: Path, where: str) -> Row:
    """A row of a .jsonl whose image paths are relative to `root`. Raises InputError naming `where`."""
    return (*parse_conversation(row, root, where), where)
