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
        ('{"messages": [{"role": "assistant"}]}', "template refuses"),
    ):
        file.write_text(json.dumps(rows[0]) + "\n" + bad + "\n")
        with pytest.raises(DfqError, match=message):
            load_corpora(str(file), Words(), 9, 9, 64, 0)
