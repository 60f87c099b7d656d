"""Rows of text from one file: plain text, JSON lines, parquet, or a raw WikiText file.

A reader returns a list of rows; `dfrot.data.text` joins them. Every refusal names the file and, where there is one,
the line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dfrot.data.jsonl import json_values
from dfrot.errors import InputError, ResourceError


def read_texts(path: Path) -> list[str]:
    """The rows of `path`, by its suffix. Raises InputError naming file, line and remedy; ResourceError without
    pyarrow."""
    reader = READERS.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: unknown kind of dataset file; use one of {', '.join(sorted(READERS))}", file=path)
    try:
        return reader(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check path and permissions", file=path
        ) from error


def _decode(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8", file=path) from error


def _plain_text(path: Path) -> list[str]:
    """A text file is one row, line breaks included."""
    return [_decode(path)]


def _wikitext(path: Path) -> list[str]:
    """One row per line, the line break kept, blank lines as empty rows: the rows of the hub's `wikitext` dataset."""
    lines = _decode(path).replace("\r\n", "\n").split("\n")
    rows = [f"{line}\n" for line in lines[:-1]] + lines[-1:] * bool(lines[-1])
    return [row if row.strip() else "" for row in rows]


def _json_lines(path: Path) -> list[str]:
    """The `text` of every line."""
    rows = []
    for value, location in json_values(path):
        text = value.get("text") if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise InputError(
                f'{location}: no "text" field with a string; each line must be {{"text": "..."}}', file=path
            )
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise InputError(
                f"{location}: the text holds half a surrogate pair, which is no Unicode text; remove it", file=path
            )
        rows.append(text)
    return rows


def _parquet(path: Path) -> list[str]:
    """The column `text`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ResourceError(f"{path}: reading parquet needs pyarrow; pip install pyarrow, or give .jsonl") from error
    try:
        column = pyarrow.parquet.read_table(str(path), columns=["text"]).column("text").to_pylist()
    except (pyarrow.ArrowException, KeyError) as error:
        raise InputError(f'{path}: no parquet file with a "text" column ({_first_line(error)})', file=path) from error
    for number, text in enumerate(column):
        if not isinstance(text, str):
            raise InputError(
                f'{path}, row {number}: "text" is {type(text).__name__}, not a string; remove the row', file=path
            )
    return list(column)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


READERS: dict[str, Callable[[Path], list[str]]] = {
    ".txt": _plain_text,
    ".raw": _wikitext,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
"""Suffix -> reader: the dataset files that can be read."""
