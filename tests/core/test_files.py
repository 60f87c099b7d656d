"""Atomic writes, JSON and digests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfrot.errors import InputError
from dfrot.files import digest_bytes, read_json, write_bytes, write_json


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_write_bytes_replaces_whole_files_and_leaves_no_trace_of_failure(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"one")
    write_bytes(tmp_path / "a", b"two")
    assert contents(tmp_path) == {"a": b"two"}
    with pytest.raises(TypeError):
        write_bytes(tmp_path / "a", "text")  # type: ignore[arg-type]
    assert contents(tmp_path) == {"a": b"two"}


def test_json_is_stable_and_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": "ü"})
    assert json.loads((tmp_path / "a").read_text()) == {"a": "ü", "b": 1}
    assert (tmp_path / "a").read_text().index('"a"') < (tmp_path / "a").read_text().index('"b"')
    for damaged in (b"{", b"\xff\xfe", b"[" * 100000):
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(InputError, match="not readable as JSON"):
            read_json(tmp_path / "a")


def test_digest_sees_boundaries() -> None:
    assert digest_bytes(b"ab", b"c") != digest_bytes(b"a", b"bc")
