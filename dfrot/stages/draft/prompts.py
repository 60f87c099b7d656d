"""Text prompts for evaluating a draft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.data.chat import template_ids
from dfrot.data.conversation_rows import refuse_images
from dfrot.data.dataset_rows import parse_row
from dfrot.data.row_files import SUFFIXES, row_values
from dfrot.data.text import evaluation_windows, load_text
from dfrot.data.tokenizer import encode
from dfrot.data.unicode_text import check_unicode
from dfrot.errors import InputError


def load_prompts(dataset: str, tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """Prompts as token ids: the starts of held-out windows of `length` tokens, or the first rows of a file
    of prompts or conversations, without its answers. Raises InputError where there are not enough."""
    path = Path(dataset)
    if path.suffix in SUFFIXES and path.is_file() and not _is_text(path):
        return _rows(path, tokenizer)[:count]
    text = evaluation_windows(encode(tokenizer, load_text(dataset, "test", tokenizer).text), length)
    if len(text) < count:
        raise InputError(f"{dataset}: {count} prompts of {length} tokens needed, {len(text)} found")
    return [row.tolist() for row in text[:: len(text) // count][:count]]


def _is_text(path: Path) -> bool:
    """Whether the first row is plain text, without a prompt."""
    value, location = next(row_values(path), ({}, str(path)))
    if not isinstance(value, dict) or value.get("prompt"):
        return False
    return parse_row(value, location, conversations_first=True).is_text if value else False


def _rows(path: Path, tokenizer: Any) -> list[list[int]]:
    prompts = []
    for value, location in row_values(path):
        if isinstance(value, dict) and isinstance(value.get("prompt"), str) and value["prompt"]:
            refuse_images(value, location)
            prompts.append(list(tokenizer(check_unicode(value["prompt"], location))["input_ids"]))
            continue
        row = parse_row(value, location, conversations_first=True)
        if not row.messages:
            raise InputError(f'{location}: neither "prompt" nor "messages"; mend or remove the line', file=path)
        messages = [message for message in row.messages if message["role"] != "assistant"]
        prompts.append(template_ids(tokenizer, messages, True))
    if not prompts:
        raise InputError(f"{path}: holds no prompts", file=path)
    return prompts
