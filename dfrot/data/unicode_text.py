"""Text that is no Unicode: JSON escapes and arguments of commands can hold half of a surrogate pair, which no tokenizer
encodes."""

from __future__ import annotations

from dfrot.errors import InputError


def check_unicode(text: str, location: str) -> str:
    """`text`. Raises InputError that begins with `location` where it holds half of a surrogate pair."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InputError(
            f"{location}: holds half a surrogate pair, or bytes that are not UTF-8, which is no Unicode text; remove it"
        )
    return text
