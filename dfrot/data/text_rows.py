"""Rows of text from one file: plain text, JSON lines, parquet, or a raw WikiText file.

A reader gives a list of rows; who joins them is another matter (`dfrot.data.text`). Every refusal names the file
and, where there is one, the line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dfrot.errors import InputError, ResourceError


def read_texts(path: Path) -> list[str]:
    """Return the rows of `path` by its suffix; `InputError` names file, line and remedy."""
    reader = READERS.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: unknown kind of dataset file; use one of {', '.join(sorted(READERS))}")
    try:
        return reader(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check path and permissions") from error


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from error


def _plain(path: Path) -> list[str]:
    """A text file is one row: its own line breaks are its own business."""
    return [_decoded(path)]


def _wikitext(path: Path) -> list[str]:
    """One row per line, the line break kept, blank lines as empty rows: the rows of the hub's `wikitext` dataset."""
    lines = _decoded(path).replace("\r\n", "\n").split("\n")
    whole = [f"{line}\n" for line in lines[:-1]] + lines[-1:] * bool(lines[-1])
    return [line if line.strip() else "" for line in whole]


def _json_lines(path: Path) -> list[str]:
    rows = []
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON; mend or remove the line") from error
        text = entry.get("text") if isinstance(entry, dict) else None
        if not isinstance(text, str):
            raise InputError(f'{where}: no "text" field with a string; each line must be {{"text": "..."}}')
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise InputError(f"{where}: the text holds half a surrogate pair, which is no Unicode text; remove it")
        rows.append(text)
    return rows


def _parquet(path: Path) -> list[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ResourceError(f"{path}: reading parquet needs pyarrow; pip install pyarrow, or give .jsonl") from error
    try:
        column = pyarrow.parquet.read_table(str(path), columns=["text"]).column("text").to_pylist()
    except (pyarrow.ArrowException, KeyError) as error:
        raise InputError(f'{path}: no parquet file with a "text" column ({_first_line(error)})') from error
    for number, text in enumerate(column):
        if not isinstance(text, str):
            raise InputError(f'{path}, row {number}: "text" is {type(text).__name__}, not a string; remove the row')
    return list(column)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


READERS: dict[str, Callable[[Path], list[str]]] = {
    ".txt": _plain,
    ".raw": _wikitext,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
"""Suffix -> reader; what `--dataset PATH` accepts."""
