"""Rows of a dataset file as what they hold: plain text, a conversation, or a prompt with its completion.

The formats are those that public data sets have: `text`; chat `messages` (role, content); ShareGPT `conversations`
(from, value); `prompt` and `completion`, texts or messages. Rows are hostile until checked: what is not read is refused
with its row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfrot.data.row_files import row_values
from dfrot.data.unicode_text import check_unicode
from dfrot.errors import InputError, UnsupportedError

FORMATS = '"text", "messages" (role, content), "conversations" (from, value), or "prompt" and "completion"'
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class DatasetRow:
    """One row. Exactly one of `texts`, `messages` and `prompt` is given."""

    location: str
    """File and row, for messages of errors."""
    texts: tuple[str, ...] = ()
    """Plain text; a list in the file gives several."""
    messages: tuple[dict[str, Any], ...] = ()
    """A conversation: role and content, a text, of every message."""
    prompt: str | None = None
    """The text in front of `completion`; None where there is none."""
    completion: str = ""
    """What follows `prompt`, without any separator."""

    @property
    def is_text(self) -> bool:
        """Whether the row is plain text, without turns."""
        return bool(self.texts)


def read_rows(path: Path, conversations_first: bool = False) -> Iterator[DatasetRow]:
    """The rows of a .jsonl, .json or .parquet file.

    conversations_first: which of `text` and a conversation is taken where a row has both. Raises InputError for a row
    that is none of `FORMATS`, UnsupportedError for one with images, both naming the row; what `row_values` raises."""
    for value, location in row_values(path):
        yield parse_row(value, location, conversations_first)


def first_row(path: Path) -> DatasetRow:
    """The first row of a file, conversations first. Raises InputError for a file without rows."""
    for row in read_rows(path, conversations_first=True):
        return row
    raise InputError(f"{path}: holds no rows", file=path)


def parse_row(row: Any, location: str, conversations_first: bool = False) -> DatasetRow:
    """One row as `read_rows` gives it. Raises InputError or UnsupportedError that begins with `location`."""
    if not isinstance(row, dict):
        raise InputError(f"{location}: not a JSON object with {FORMATS}; mend or remove the row")
    keys = ["messages", "conversations", "completion"]
    keys = [*keys, "text"] if conversations_first else ["text", *keys]
    key = next((key for key in keys if row.get(key) is not None), None)
    if key == "text":
        return DatasetRow(location, texts=_texts(row["text"], location))
    if key == "completion":
        return _with_completion(row, location)
    if key is None:
        raise InputError(f"{location}: holds none of {FORMATS}; rename the fields, or remove the row")
    return DatasetRow(location, messages=_conversation(row, key, location))


def _texts(value: Any, location: str) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        kind = "an empty list" if value == [] else f"{type(value).__name__}, not a string or a list of strings"
        raise InputError(f'{location}: "text" is {kind}; mend or remove the row')
    return tuple(check_unicode(text, location) for text in texts)


def _with_completion(row: dict[str, Any], location: str) -> DatasetRow:
    prompt, completion = row.get("prompt"), row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        _refuse_images(row, location)
        return DatasetRow(
            location, prompt=check_unicode(prompt, location), completion=check_unicode(completion, location)
        )
    if isinstance(prompt, list) and isinstance(completion, list):
        return DatasetRow(location, messages=_conversation({**row, "both": prompt + completion}, "both", location))
    raise InputError(f'{location}: "prompt" and "completion" are two texts or two lists of messages; mend the row')


def _conversation(row: dict[str, Any], key: str, location: str) -> tuple[dict[str, Any], ...]:
    value = row[key]
    if not isinstance(value, list) or not value:
        raise InputError(f'{location}: "{key}" must be a list of messages; mend or remove the row')
    _refuse_images(row, location)
    messages = [_message(message, location) for message in value]
    system = row.get("system")
    if key == "conversations" and isinstance(system, str) and system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": check_unicode(system, location)})
    return tuple(messages)


def _message(message: Any, location: str) -> dict[str, Any]:
    """A message with role and content; its other fields, which chat templates may read, stay."""
    if isinstance(message, dict) and "from" in message and "role" not in message:
        role, content = message["from"], message.get("value")
        if not isinstance(role, str) or role not in SHAREGPT_ROLES:
            raise InputError(
                f'{location}: "from" is {role!r}, not one of {", ".join(SHAREGPT_ROLES)}; rename it, or remove the row'
            )
        message = {"role": SHAREGPT_ROLES[role], "content": content}
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InputError(f"{location}: a message is an object of role and content; mend or remove the row")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return {**message, "content": ""}
    if isinstance(content, str):
        check_unicode(content, location)
        return message
    return {**message, "content": check_unicode(_joined_parts(content, location), location)}


def _joined_parts(content: Any, location: str) -> str:
    """The text of a list of text parts."""
    if not isinstance(content, list):
        raise InputError(f"{location}: content must be text or a list of parts; mend or remove the row")
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise UnsupportedError(f"{location}: holds images or parts other than text; give a VLM")
    return "".join(text for text in texts if text is not None)


def _refuse_images(row: dict[str, Any], location: str) -> None:
    if row.get("images") or row.get("image"):
        raise UnsupportedError(f"{location}: holds images or parts other than text; give a VLM")
