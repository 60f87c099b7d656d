"""Training data from conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dfrot.draft.training.corpus import load_corpora
from dfrot.errors import DfqError


class Words:
    """A tokenizer of characters with a chat template that marks turns."""

    rewrites = False

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        text = f"#{len(messages)}" if self.rewrites else ""
        for message in messages:
            text += f"<{message['role'][0]}>{message['content']}."
        return text + ("<a>" if add_generation_prompt else "")

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "no"},
]


def test_conversations_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"q{n}"}, *CHAT[1:2]]} for n in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, held_out = load_corpora(str(file), Words(), 100, 100, 64, 0)
    assert len(train) + len(held_out) == 60
    assert len(held_out) > 0
    again = load_corpora(str(file), Words(), 100, 100, 64, 7)
    assert again[1].digest() == held_out.digest(), "the split depends on the conversation alone"
    for bad, message in (
        ('{"messages": []}', "must be a list"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no answer"),
        ("{", "not JSON"),
        (json.dumps({"messages": CHAT, "images": ["x.png"]}), "holds images"),
        (json.dumps({"messages": [{"role": "user", "content": [{"type": "image"}]}, CHAT[1]]}), "other than text"),
        ('{"messages": [{"role": "assistant"}]}', "content must be text"),
        ('{"text": "x"}', "plain text among conversations"),
    ):
        file.write_text(json.dumps(rows[0]) + "\n" + bad + "\n")
        with pytest.raises(DfqError, match=message):
            load_corpora(str(file), Words(), 9, 9, 64, 0)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("form", ["sharegpt", "completion"])
def test_other_forms_of_answers(tmp_path: Path, suffix: str, form: str) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"q{n}", "completion": "yes"} for n in range(60)]
    if form == "sharegpt":
        turns = [{"from": "gpt", "value": "yes"}]
        rows = [{"conversations": [{"from": "human", "value": f"q{n}"}, *turns]} for n in range(60)]
    file = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    train, held_out = load_corpora(str(file), Words(), 100, 100, 64, 0)
    assert len(train) + len(held_out) == 60
    assert len(held_out) > 0
    assert (
        "".join(chr(token) for token in train.tokens[0][train.mask[0]].tolist())
        == {
            "sharegpt": "yes",
            "completion": "ye",
        }[form]
    )
