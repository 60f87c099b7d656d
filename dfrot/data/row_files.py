"""Files of rows: JSON lines, a JSON list, or parquet. Every refusal names the file and, where there is one, the row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfrot.data.jsonl import json_values
from dfrot.data.unicode_text import read_utf8
from dfrot.errors import InputError, ResourceError, reason_of

COLUMNS = ("text", "messages", "conversations", "prompt", "completion")  # of parquet files, one of them at least
BESIDE = ("system", "images", "image")  # read, too, where a file has them
SUFFIXES = (".json", ".jsonl", ".parquet")


def row_values(path: Path) -> Iterator[tuple[Any, str]]:
    """The values of a file, one per row, each with its location.

    Raises InputError for a file that is damaged or has another suffix, ResourceError for parquet without pyarrow."""
    if path.suffix == ".jsonl":
        return json_values(path)
    if path.suffix == ".json":
        return _json_list(path)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    raise InputError(f"{path}: rows are read from {', '.join(SUFFIXES)}", file=path)


def _json_list(path: Path) -> Iterator[tuple[Any, str]]:
    text = read_utf8(path)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); mend it, or give .jsonl", file=path) from None
    if not isinstance(rows, list):
        raise InputError(f"{path}: not a list of rows; give one, or .jsonl with a row per line", file=path)
    yield from ((row, f"{path}, row {number}") for number, row in enumerate(rows))


def _parquet_rows(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ResourceError(f"{path}: reading parquet needs pyarrow; pip install pyarrow, or give .jsonl") from error
    try:
        with pyarrow.parquet.ParquetFile(str(path)) as file:
            present = list(file.schema_arrow.names)
            if not set(COLUMNS) & set(present):
                names = ", ".join(present[:12])
                raise InputError(
                    f'{path}: no "text" column, nor "messages", "conversations", or "prompt" and "completion" '
                    f"(it has {names}); rename one",
                    file=path,
                )
            columns = [name for name in (*COLUMNS, *BESIDE) if name in present]
            number = 0
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    yield _without_nulls(row), f"{path}, row {number}"
                    number += 1
    except (pyarrow.ArrowException, KeyError) as error:
        reason = reason_of(error)
        raise InputError(f"{path}: no parquet file that can be read ({reason})", file=path) from error


def _without_nulls(value: Any) -> Any:
    """Without the keys whose value is null: a struct has every key of its column."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
