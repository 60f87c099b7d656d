"""JSON-lines files: locations, and what is refused by the number of its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfrot.data.jsonl import json_values, read_json_lines
from dfrot.errors import InputError


def test_lines_are_counted_with_the_blank_ones(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n\n" + json.dumps({"a": 1}) + "\n\nnonsense\n")
    rows = read_json_lines(file)
    assert next(rows) == ({"a": 1}, f"{file}, line 3")
    with pytest.raises(InputError, match="line 5: not JSON"):
        next(rows)
    file.write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(InputError, match="not UTF-8"):
        list(read_json_lines(file))


def test_a_byte_order_mark_is_skipped_and_bytes_are_counted_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert list(json_values(file)) == [({"a": 1}, f"{file}, line 1")]
    file.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(InputError, match="not UTF-8 at byte 16"):
        list(json_values(file))
