"""Reading JSON-lines files, which are hostile until checked: every refusal names file and line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfrot.errors import InputError


def json_values(path: Path) -> Iterator[tuple[Any, str]]:
    """The JSON values of a file, one per line, each with its location: "FILE, line N". Blank lines are skipped.

    Raises InputError for a line that is not UTF-8 or not JSON."""
    offset = 0
    with path.open("rb") as handle:
        for number, raw in enumerate(handle, 1):
            begin, offset = offset, offset + len(raw)
            if number == 1 and raw.startswith(codecs.BOM_UTF8):
                begin, raw = begin + len(codecs.BOM_UTF8), raw[len(codecs.BOM_UTF8) :]
            try:
                line = raw.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: not UTF-8 at byte {begin + error.start}; convert the file to UTF-8", file=path
                ) from None
            if not line.strip():
                continue
            location = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
                raise InputError(f"{location}: not JSON ({error}); mend or remove the line", file=path) from None
            yield value, location


def read_json_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """As `json_values`, objects only. Raises InputError for any other value, too."""
    for value, location in json_values(path):
        if not isinstance(value, dict):
            raise InputError(f"{location}: not a JSON object; mend or remove the line", file=path)
        yield value, location
