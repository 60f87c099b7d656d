"""Rows with images: places and paths, and what is refused by the number of its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dfrot.data.conversation_rows import MAX_IMAGES, parse_conversation
from dfrot.data.jsonl import read_json_lines
from dfrot.errors import DfqError, InputError

Image = pytest.importorskip("PIL.Image")
ASKED = {"role": "user", "content": "<image>What?"}
ROW: dict[str, Any] = {"messages": [ASKED, {"role": "assistant", "content": "A."}], "images": ["a.png"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "data"
    (inside / "more").mkdir(parents=True)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(inside / "a.png")
    Image.new("RGB", (8, 8), (0, 0, 255)).save(inside / "more" / "b.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (inside / "link.png").symlink_to(tmp_path / "outside.png")
    (inside / "loop.png").symlink_to(inside / "loop.png")
    (inside / "text.png").write_text("no image")
    return inside


def test_images_come_in_the_order_of_their_places(folder: Path) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
    row = {"messages": [{"role": "user", "content": parts}], "images": ["a.png", "more/b.png"]}
    messages, seen = parse_conversation(row, folder, "here")
    assert messages[0]["content"] == parts
    assert [picture[0, 0].tolist() for picture in seen] == [[255, 0, 0], [0, 0, 255]]
    marked = {"messages": [{"role": "user", "content": "<image>and<image>"}], "images": row["images"]}
    assert parse_conversation(marked, folder, "here")[0] == messages
    prompt, _ = parse_conversation({"prompt": "Which?", "images": ["a.png"]}, folder, "here")
    assert prompt == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "must be a list"),
        ({"images": "a.png"}, "must be a list"),
        ({"images": [3]}, "must be a list"),
        ({"images": ["a.png", "a.png"]}, "1 places for images .* 2 images"),
        ({"messages": [{"role": "user", "content": "What?"}]}, "0 places"),
        ({"images": ["a.png"] * (MAX_IMAGES + 1)}, "at most"),
        ({"images": ["../outside.png"]}, "inside the folder"),
        ({"images": ["more/../../outside.png"]}, "inside the folder"),
        ({"images": ["link.png"]}, "inside the folder"),
        ({"images": ["loop.png"]}, "inside the folder|no such file"),
        ({"images": ["/etc/hostname"]}, "inside the folder"),
        ({"images": ["a\0.png"]}, "inside the folder|no such file"),
        ({"images": ["http://example.com/a.png"]}, "no such file"),
        ({"images": ["absent.png"]}, "no such file"),
        ({"images": ["more"]}, "no such file"),
        ({"images": ["text.png"]}, "not a whole"),
        ({"messages": []}, "must be a list"),
        ({"messages": ["x"]}, "role and content"),
        ({"messages": [{"role": "user", "content": 3}]}, "text or a list of parts"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "'audio'"),
    ],
)
def test_rows_that_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DfqError, match=message) as caught:
        parse_conversation({**ROW, **change}, folder, "rows.jsonl, line 7")
    assert str(caught.value).startswith("rows.jsonl, line 7")
    assert "\n" not in str(caught.value)


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
