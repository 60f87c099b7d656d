"""The corpus of the running interpreter: its split, its pieces, its delimiter."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfrot.data import stdlib
from dfrot.data.text import load_text


@pytest.fixture(scope="module")
def held_out() -> str:
    return load_text("stdlib", "test").text


def test_splits_share_no_module_and_hold_out_a_few_percent() -> None:
    names = {split: {name for name, _ in stdlib.documents(split)} for split in ("train", "test")}
    tops = {split: {name.split("/")[0].removesuffix(".py") for name in documents} for split, documents in names.items()}
    assert tops["train"] & tops["test"] <= {"pydoc_data"}
    assert not names["train"] & names["test"]
    assert 0.02 < len(names["test"]) / (len(names["train"]) + len(names["test"])) < 0.10


def test_the_split_does_not_depend_on_the_python_version() -> None:
    """A module that moved behind a C accelerator keeps its side, and the weights that ship know these four."""
    for private, public in {"_pydatetime": "datetime", "_pyio": "io", "_strptime": "strptime"}.items():
        assert stdlib.split_of(private) == stdlib.split_of(public)
    assert stdlib.split_of("json") == stdlib.split_of("logging") == "test"
    assert stdlib.split_of("argparse") == stdlib.split_of("typing") == "train"


def test_tests_and_tables_stay_out() -> None:
    names = [name for split in ("train", "test") for name, _ in stdlib.documents(split)]
    assert not [name for name in names if "/test/" in name or "/tests/" in name or name.startswith("encodings")]
    assert {name.split("/")[0].removesuffix(".py") for name in names} <= sys.stdlib_module_names | {"pydoc_data"}
    assert sum(name.startswith("pydoc_data/topics/") for name in names) > 50


def test_form_feeds_occur_only_between_pieces(held_out: str) -> None:
    count = held_out.count("\f")
    assert count == held_out.count(stdlib.DELIMITER)
    assert 2000 < len(held_out) / count < 2 * stdlib.PIECE_CHARS
    assert held_out == stdlib.text("test")


@given(st.text(alphabet="ab \n\f", max_size=300))
def test_pieces_keep_every_character_but_blank_edges_and_form_feeds(body: str) -> None:
    def visible(text: str) -> str:
        return "".join(text.split())

    assert visible("".join(stdlib.pieces(body))) == visible(body.replace("\f", ""))


def test_a_long_document_is_cut_at_blank_lines() -> None:
    body = "\n\n".join(["word " * 100] * 40)
    pieces = list(stdlib.pieces(body))
    assert "\n\n".join(pieces) == body
    assert all(stdlib.PIECE_CHARS <= len(piece) < stdlib.PIECE_CHARS + 600 for piece in pieces[:-1])
