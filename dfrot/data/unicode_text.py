"""Text that is no Unicode: JSON escapes and arguments of commands can hold half of a surrogate pair, which no tokenizer
encodes."""

from __future__ import annotations

from pathlib import Path

from dfrot.errors import InputError


def check_unicode(text: str, location: str) -> str:
    """`text`. Raises InputError that begins with `location` where it holds half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{location}: holds half a surrogate pair, or bytes that are not UTF-8, which is no Unicode text; remove it"
        ) from None
    return text


def read_utf8(path: Path) -> str:
    """The text of a file, without a byte order mark. Raises InputError for one that is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8", file=path) from error
