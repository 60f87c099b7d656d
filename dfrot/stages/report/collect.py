"""`dfq report`: results of several runs, found in files and folders, as one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dfrot.errors import InputError
from dfrot.files import read_json
from dfrot.stages.report.readers import find_reader
from dfrot.stages.report.table import Table

MAX_DEPTH = 3  # levels of folders that are searched, the given one included
MAX_BYTES = 64 << 20  # of a result file
SKIPPED = {
    "stage.json",
    "recipe.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "request.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "draft.json",
}
"""JSON files of dfq's folders that hold no results."""


def collect_results(paths: Sequence[Path]) -> Table:
    """Every result of dfq in files and folders (`run.json`, files of dfq eval and dfq compare).

    Raises InputError for a path that does not exist or holds no result."""
    table = Table()
    for path in paths:
        count = 0
        for file in _result_files(path):
            value = read_json(file)
            reader = find_reader(value)
            if reader is not None:
                reader(table, value, file)
                table.files.append(str(file))
                count += 1
        if not count:
            raise InputError(
                f"{path}: holds no result; give a folder of dfq run, or files written by dfq eval with `out`",
                field="out",
                file=path,
            )
    return table


def _result_files(path: Path) -> Iterator[Path]:
    """The file itself, or the JSON files of a folder that may hold results, hidden ones left out."""
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder", file=path)
    for depth in range(MAX_DEPTH):
        for file in sorted(path.glob("/".join(["*"] * depth + ["*.json"]))):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if not hidden and file.name not in SKIPPED and file.stat().st_size <= MAX_BYTES:
                yield file
