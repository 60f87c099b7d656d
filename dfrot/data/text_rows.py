"""Texts from one file: plain text, a raw WikiText file, or rows (JSON lines, a JSON list, parquet).

A reader returns a list of rows; `dfrot.data.text` joins them. Every refusal names the file and, where there is one,
the line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dfrot.data.chat import Render, plain_turns
from dfrot.data.dataset_rows import read_rows
from dfrot.data.unicode_text import read_utf8
from dfrot.errors import InputError


def read_texts(path: Path, render: Render = plain_turns) -> list[str]:
    """The rows of `path`, by its suffix. render: conversation -> text.

    Raises InputError naming file, line and remedy; ResourceError without pyarrow."""
    reader = READERS.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: unknown kind of dataset file; use one of {', '.join(sorted(READERS))}", file=path)
    try:
        return reader(path, render)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check path and permissions", file=path
        ) from error


def _plain_text(path: Path, render: Render) -> list[str]:
    """A text file is one row, line breaks included."""
    return [read_utf8(path)]


def _wikitext(path: Path, render: Render) -> list[str]:
    """One row per line, the line break kept, blank lines as empty rows: the rows of the hub's `wikitext` dataset."""
    lines = read_utf8(path).replace("\r\n", "\n").split("\n")
    rows = [f"{line}\n" for line in lines[:-1]] + lines[-1:] * bool(lines[-1])
    return [row if row.strip() else "" for row in rows]


def _rows(path: Path, render: Render) -> list[str]:
    """The texts of rows: as they are, a prompt with its completion behind it, or a rendered conversation."""
    texts: list[str] = []
    for row in read_rows(path):
        if row.prompt is not None:
            texts.append(row.prompt + row.completion)
        else:
            texts += row.texts or (render(row.messages, row.location),)
    return texts


READERS: dict[str, Callable[[Path, Render], list[str]]] = {
    ".txt": _plain_text,
    ".raw": _wikitext,
    ".json": _rows,
    ".jsonl": _rows,
    ".parquet": _rows,
}
"""Suffix -> reader: the dataset files that can be read."""
