"""Text prompts for evaluating a draft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.data.chat import template_ids
from dfrot.data.conversation_rows import refuse_images
from dfrot.data.jsonl import read_json_lines
from dfrot.data.text import evaluation_windows, load_text
from dfrot.data.tokenizer import encode
from dfrot.errors import InputError


def load_prompts(dataset: str, tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """Prompts as token ids: the starts of held-out windows of `length` tokens, or the first rows of a .jsonl of
    `prompt` or `messages`. Raises InputError where there are not enough."""
    path = Path(dataset)
    if path.suffix == ".jsonl" and path.is_file():
        return _rows(path, tokenizer)[:count]
    text = evaluation_windows(encode(tokenizer, load_text(dataset, "test").text), length)
    if len(text) < count:
        raise InputError(f"{dataset}: {count} prompts of {length} tokens needed, {len(text)} found")
    return [row.tolist() for row in text[:: len(text) // count][:count]]


def _rows(path: Path, tokenizer: Any) -> list[list[int]]:
    prompts = []
    for row, where in read_json_lines(path):
        refuse_images(row, where)
        if isinstance(row.get("prompt"), str) and row["prompt"]:
            prompts.append(list(tokenizer(row["prompt"])["input_ids"]))
        elif isinstance(row.get("messages"), list):
            messages = [m for m in row["messages"] if isinstance(m, dict) and m.get("role") != "assistant"]
            prompts.append(template_ids(tokenizer, messages, True))
        else:
            raise InputError(f'{where}: neither "prompt" nor "messages"; mend or remove the line', file=path)
    if not prompts:
        raise InputError(f"{path}: holds no prompts", file=path)
    return prompts
