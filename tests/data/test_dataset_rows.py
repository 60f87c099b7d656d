"""Rows of data sets as people publish them: chat messages, ShareGPT, prompts with completions, parquet with lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dfrot.data.chat import completion_mask
from dfrot.data.dataset_rows import read_rows
from dfrot.data.text import load_text
from dfrot.errors import DfqError, InputError

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
PARTS += [{"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
TURNS = "user: hi\nassistant: yes"
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": MESSAGES},
    {"messages": PARTS},
    {"conversations": SHAREGPT, "id": "7"},
    {"conversations": MESSAGES},
    {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
]


class Template:
    """A tokenizer with a chat template, whose texts begin with BOS; ids are characters."""

    chat_template, bos_token, bos_token_id = "written below", "^", ord("^")

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        if messages[0]["role"] == "system":
            raise ValueError("System role not supported\n(line 3)")
        return "^" + "".join(f"<{message['role'][0]}>{message['content']}." for message in messages)

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in ("^" if add_special_tokens else "") + text]}


def write(path: Path, rows: list[Any]) -> str:
    if path.suffix == ".jsonl":
        path.write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(row) + "\n" for row in rows).encode())
    elif path.suffix == ".json":
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows).encode())
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("row", CONVERSATIONS)
def test_conversations_become_turns_or_pass_the_template(tmp_path: Path, suffix: str, row: dict[str, Any]) -> None:
    file = write(tmp_path / f"chats{suffix}", [row, row])
    plain = load_text(file, "train")
    assert plain.text == f"{TURNS}\n\n{TURNS}"
    assert (plain.rendering, plain.rendered) == ("plain turns", {"conversations": "plain turns"})
    templated = load_text(file, "test", Template())
    assert templated.text == "<u>hi.<a>yes.\n\n^<u>hi.<a>yes.", "the first BOS is the tokenizer's own"
    assert templated.rendering == "chat template"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_prompts_and_lists_of_texts_are_plain_text(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"a{suffix}", [{"prompt": "1 + 1 =", "completion": " 2"}])
    text = load_text(file, "train", Template())
    assert (text.text, text.rendering, text.rendered) == ("1 + 1 = 2", None, {})
    file = write(tmp_path / f"b{suffix}", [{"text": ["one", "two"]}, {"text": ["three"]}])
    assert load_text(file, "train", Template()).text == "one\n\ntwo\n\nthree"


def test_a_tokenizer_without_a_template_takes_plain_turns(tmp_path: Path) -> None:
    tokenizer = Template()
    tokenizer.chat_template = None  # type: ignore[assignment]
    text = load_text(write(tmp_path / "a.jsonl", [{"messages": MESSAGES}]), "train", tokenizer)
    assert (text.text, text.rendering) == (TURNS, "plain turns")


def test_the_system_field_of_sharegpt_is_the_first_message(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"conversations": SHAREGPT, "system": "be brief"}])
    assert load_text(file, "train").text == f"system: be brief\n{TURNS}"
    with pytest.raises(InputError, match=r"line 1: the chat template refuses it \(System role not supported\)"):
        load_text(file, "train", Template())


def test_where_a_row_has_both_the_caller_chooses(tmp_path: Path) -> None:
    file = Path(write(tmp_path / "a.jsonl", [{"text": "plain", "messages": MESSAGES}]))
    assert next(read_rows(file)).texts == ("plain",)
    assert next(read_rows(file, conversations_first=True)).messages == tuple(MESSAGES)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "x", "output": "y"}, "holds none of"),
        ({"messages": []}, '"messages" must be a list'),
        ({"messages": "x"}, '"messages" must be a list'),
        ({"messages": ["x"]}, "a message is an object"),
        ({"messages": [{"role": 1, "content": "x"}]}, "a message is an object"),
        ({"messages": [{"role": "user", "content": 3}]}, "content must be text"),
        ({"messages": [{"role": "user"}]}, "content must be text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "other than text"),
        ({"messages": MESSAGES, "images": ["x.png"]}, "holds images"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "\"from\" is 'narrator'"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, '"from" is'),
        ({"prompt": "x", "completion": 3}, "two texts or two lists"),
        ({"prompt": "x"}, "holds none of"),
        ({"completion": "x"}, "two texts or two lists"),
        ({"text": []}, '"text" is an empty list'),
        ({"text": ["a", 1]}, '"text" is list'),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        ({"prompt": "\udfff", "completion": "x"}, "surrogate"),
        (3, "not a JSON object"),
    ],
)
def test_what_is_not_read_is_refused_with_its_row(tmp_path: Path, row: Any, message: str) -> None:
    file = write(tmp_path / "a.jsonl", [{"text": "fine"}, row])
    with pytest.raises(DfqError, match=message) as caught:
        load_text(file, "train")
    assert f"{file}, line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"text": "a"}', "not a list of rows"), (b"[", "not JSON"), (b'["\xff"]', "not UTF-8"), (b"[" * 99999, "JSON")],
)
def test_damaged_lists_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_text(str(tmp_path / "a.json"), "train")


def test_parquet_names_the_row_and_its_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", [{"messages": MESSAGES}, {"messages": None}])
    with pytest.raises(InputError, match=r"a\.parquet, row 1: holds none of"):
        load_text(file, "train")
    file = write(tmp_path / "b.parquet", [{"question": "x", "answer": "y"}])
    with pytest.raises(InputError, match=r"\(it has question, answer\)"):
        load_text(file, "train")


def test_only_the_completion_counts() -> None:
    ids, mask = completion_mask(Template(), "ab", "cde")
    assert "".join(map(chr, ids)) == "^abcde"
    assert "".join(chr(token) for token, counts in zip(ids, mask) if counts) == "cd"
