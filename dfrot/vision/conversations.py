"""conversations"""

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
"""Messages, pictures uint8 [H, W, 3], where they stand."""


def question(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages before the first answer."""
    return list(itertools.takewhile(lambda message: message.get("role") != "assistant", messages))


def images_in(messages: Sequence[dict[str, Any]]) -> int:
    """Places of images in messages whose contents are texts or lists of parts."""
    lists = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return sum(part["type"] == "image" for parts in lists for part in parts)


def has_images(dataset: str) -> bool:
    """Whether rows of a dataset hold images: `shapes`, or a .jsonl some row of which does."""
    path = Path(dataset)
    if dataset == shapes.NAME or path.suffix != ".jsonl" or not path.is_file():
        return dataset == shapes.NAME
    conversation_row = path.stat()
    return _holds_images(path, conversation_row.st_mtime_ns, conversation_row.st_size)


@functools.lru_cache(maxsize=8)
def _holds_images(path: Path, *_: int) -> bool:
    """Read once for all who ask, as long as the file's time and size stay."""
    return any("images" in row for row, _ in read_json_lines(path))


def drawn_conversation(seed: int) -> Row:
    """A drawn picture with a question and its answer."""
    one = shapes.sample(seed)
    first_question = [{"type": "image"}, {"type": "text", "text": one.question}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": first_question},
        {"role": "assistant", "content": one.answer},
    ]
    return messages, [one.picture], f"{shapes.NAME} {seed}"


def conversation_row(row: dict[str, Any], root: Path, where: str) -> Row:
    """A row of a .jsonl."""
    return (*parse_conversation(row, root, where), where)
