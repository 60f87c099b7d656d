"""Where text comes from: files, folders, the standard library; and how bad files are refused."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from dfrot.data.text import Text, load_text
from dfrot.errors import InputError, ResourceError

ROWS = ["one", "", " zwei é\n", "three"]


def as_json_lines(rows: list[str]) -> str:
    return "".join(json.dumps({"text": row}) + "\n" for row in rows)


def as_parquet(path: Path, columns: dict[str, list[object]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)


def test_rows_are_joined_by_two_newlines_whatever_the_container(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(as_json_lines(ROWS) + "\n")
    as_parquet(tmp_path / "a.parquet", {"text": list(ROWS)})
    want = "\n\n".join(ROWS)
    assert load_text(str(tmp_path / "a.jsonl"), "train").text == want
    assert load_text(str(tmp_path / "a.parquet"), "test").text == want


def test_a_text_file_is_taken_as_it_is_and_serves_both_splits(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("line\n\n\nother é")
    train, test = (load_text(str(tmp_path / "a.txt"), split) for split in ("train", "test"))
    assert train.text == test.text == "line\n\n\nother é"
    assert train.digest == hashlib.sha256("line\n\n\nother é".encode()).hexdigest()
    assert train.digest != Text("x", "train", "line").digest


def test_raw_wikitext_gives_the_rows_of_the_hub(tmp_path: Path) -> None:
    """The hub keeps the line break of a row and empties rows of white space; both reach the joined text."""
    (tmp_path / "wiki.test.raw").write_text(" \n = Title = \n \n Body . \n")
    assert load_text(str(tmp_path), "test").text == "\n\n".join(["", " = Title = \n", "", " Body . \n"])


@pytest.mark.parametrize("sub", ["", "wikitext-2-raw-v1"])
def test_a_folder_gives_each_split_its_own_files(tmp_path: Path, sub: str) -> None:
    folder = tmp_path / sub
    folder.mkdir(exist_ok=True)
    as_parquet(folder / "train-00001-of-00002.parquet", {"text": ["second"]})
    as_parquet(folder / "train-00000-of-00002.parquet", {"text": ["first"]})
    (folder / "test.txt").write_text("held out")
    assert load_text(str(tmp_path), "train").text == "first\n\nsecond"
    assert load_text(str(tmp_path), "test").text == "held out"


def test_a_folder_without_the_split_names_what_it_expected(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("x")
    with pytest.raises(InputError, match=r"no file of the test split.*wiki\.test\.raw"):
        load_text(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good \xff bad", "not UTF-8 at byte 5"),
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n ", "holds no text"),
        ("a.csv", b"text", "unknown kind"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n{"body": "b"}\n', 'line 3: holds none of "text", "messages"'),
        ("a.jsonl", b'["a"]\n', 'line 1: not a JSON object with "text"'),
        ("a.jsonl", b'{"text": 7}\n', 'line 1: "text" is int, not a string'),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: .*surrogate"),
        ("a.jsonl", b"[" * 200_000, "line 1: not JSON"),
        ("a.jsonl", b"", "holds no text"),
        ("a.parquet", b"PAR1 not really", "no parquet file"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_text(str(tmp_path / name), "train")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"body": ["a"]}, '"text" column'), ({"text": ["a", None]}, "row 1"), ({"text": [1]}, "row 0")],
)
def test_parquet_without_strings_is_refused(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    as_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(InputError, match=message):
        load_text(str(tmp_path / "a.parquet"), "train")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ResourceError, match="pip install pyarrow"):
        load_text(str(tmp_path / "a.parquet"), "train")


def test_missing_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such dataset; give wikitext2, stdlib"):
        load_text(str(tmp_path / "nowhere.txt"), "train")
    with pytest.raises(InputError, match="choose train or test"):
        load_text("stdlib", "validation")  # type: ignore[arg-type]


def test_wikitext_without_the_package_says_how_to_point_at_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ResourceError, match=r"datasets is not installed.*folder that holds wiki\.train\.raw"):
        load_text("wikitext2", "test")


def test_wikitext_through_the_package_and_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    package: Any = types.ModuleType("datasets")
    package.config = types.SimpleNamespace(HF_HUB_OFFLINE=False)

    def cached(hub: str, config: str, split: str) -> dict[str, list[str]]:
        assert package.config.HF_HUB_OFFLINE, "left alone, the package asks an unreachable hub for half a minute"
        return {"text": [hub, config, split]}

    package.load_dataset = cached
    monkeypatch.setitem(sys.modules, "datasets", package)
    assert load_text("wikitext2", "test").text == "Salesforce/wikitext\n\nwikitext-2-raw-v1\n\ntest"
    assert not package.config.HF_HUB_OFFLINE

    def offline(*args: str, **options: str) -> None:
        raise ConnectionError("no route\nto host")

    package.load_dataset = offline
    with pytest.raises(ResourceError, match=r"neither cached nor reachable \(no route\); give as `dataset` a folder"):
        load_text("wikitext2", "test")
