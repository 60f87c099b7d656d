"""The table of a report: rows are checkpoints, and two numbers share a column only if they were measured alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Key = tuple[str, ...]
ORDER = ("scheme", "ppl", "ratio", "kl", "top1", "task", "speed", "draft", "memory", "disk", "check")
"""Groups of columns: the first part of a key, in the order of the table."""


@dataclass
class Column:
    """A column of the table."""

    key: Key
    """What was measured and how: results with equal keys share the column."""
    title: str
    """Its heading."""
    unit: str = ""
    """How numbers are shown: "" plainly, "%", "B" bytes, "/s" per second."""


@dataclass
class Table:
    """Results of several runs."""

    columns: dict[Key, Column] = field(default_factory=dict)
    """Columns by key, in the order in which they were added."""
    rows: list[tuple[str, dict[Key, Any]]] = field(default_factory=list)
    """(checkpoint, values by column key)."""
    files: list[str] = field(default_factory=list)
    """The files that were read."""

    def put(self, checkpoint: str, column: Column, value: Any) -> None:
        """Add a value, unless it is None. A second, different value of the same column becomes a row of its own:
        nothing is averaged or replaced."""
        if value is None:
            return
        self.columns.setdefault(column.key, column)
        for name, values in self.rows:
            if name == checkpoint and values.get(column.key, value) == value:
                values[column.key] = value
                return
        self.rows.append((checkpoint, {column.key: value}))

    def ordered(self) -> list[Column]:
        """The columns by group (ORDER), then in the order in which they were added."""
        return sorted(self.columns.values(), key=lambda column: ORDER.index(column.key[0]))

    def to_dict(self) -> dict[str, Any]:
        """JSON: columns, rows of named cells, and the files that were read."""
        columns = self.ordered()
        for number, column in enumerate(columns):
            if column.title in {earlier.title for earlier in columns[:number]}:
                column.title += f" ({number})"  # measured differently in a way that the title does not name
        rows = [
            {"checkpoint": name, **{column.title: values.get(column.key) for column in columns}}
            for name, values in self.rows
        ]
        return {"columns": [column.title for column in columns], "rows": rows, "files": self.files}
