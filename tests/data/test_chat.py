"""Conversations in a chat template."""

from __future__ import annotations

from typing import Any

import pytest

from dfrot.data.chat import answer_mask
from dfrot.errors import InputError


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


def test_answers_count_and_questions_do_not() -> None:
    ids, mask = answer_mask(Words(), CHAT, "here")
    assert "".join(map(chr, ids)) == "<u>hi.<a>yes.<u>and.<a>no."
    assert "".join(chr(token) for token, counts in zip(ids, mask) if counts) == "yes.no"
    rewriting = Words()
    rewriting.rewrites = True
    with pytest.raises(InputError, match="rewrites earlier turns"):
        answer_mask(rewriting, CHAT, "here")
