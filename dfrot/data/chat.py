"""Conversations as text or token ids, by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dfrot.errors import InputError, reason_of

Render = Callable[[Sequence[Mapping[str, Any]], str], str]
"""(messages, location for errors) -> text."""
Encode = Callable[[Sequence[dict[str, Any]], bool], list[int]]
"""(messages, add_generation_prompt) -> token ids."""


def template_ids(tokenizer: Any, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> list[int]:
    """Token ids of a conversation in the tokenizer's chat template. add_generation_prompt: end ready for the
    assistant's turn."""
    text: str = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def plain_turns(messages: Sequence[Mapping[str, Any]], location: str) -> str:
    """A conversation without a template: "role: content", one turn per line."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


class ChatRenderer:
    """Conversations as text, in the chat template of a tokenizer where it has one, else as plain turns."""

    def __init__(self, tokenizer: Any | None = None) -> None:
        self.tokenizer = tokenizer
        self.has_template = getattr(tokenizer, "chat_template", None) is not None
        self.count = 0  # of rendered conversations

    @property
    def name(self) -> str:
        """How conversations are rendered, for records."""
        return "chat template" if self.has_template else "plain turns"

    def __call__(self, messages: Sequence[Mapping[str, Any]], location: str) -> str:
        """The text of a conversation. Raises InputError naming `location` where the template refuses it."""
        self.count += 1
        if not self.has_template or self.tokenizer is None:
            return plain_turns(messages, location)
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=False))
        except Exception as error:  # templates raise whatever their authors chose
            reason = reason_of(error)
            raise InputError(f"{location}: the chat template refuses it ({reason}); mend or remove the row") from None

    def without_second_bos(self, text: str) -> str:
        """`text` without the BOS that a template wrote at its start, where the tokenizer adds one itself."""
        bos = getattr(self.tokenizer, "bos_token", None)
        if not self.count or not self.has_template or not bos or not text.startswith(bos):
            return text
        assert self.tokenizer is not None
        added = self.tokenizer("", verbose=False)["input_ids"][:1] == [self.tokenizer.bos_token_id]
        return text[len(bos) :] if added else text


def answer_mask(
    tokenizer: Any, messages: Sequence[dict[str, Any]], where: str, encode: Encode | None = None
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation up to its last answer, and which of them belong to answers: found by comparing
    prefixes of the conversation. encode: how messages become ids; None for `template_ids`.

    Raises InputError naming `where` when the template rewrites earlier turns, so that a prefix of the conversation is
    no prefix of its ids."""

    def ids_of(count: int, add_generation_prompt: bool) -> list[int]:
        if encode is not None:
            return encode(messages[:count], add_generation_prompt)
        return template_ids(tokenizer, messages[:count], add_generation_prompt)

    ids: list[int] = []
    mask: list[bool] = []
    try:
        for index, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            prompt, with_answer = ids_of(index, True), ids_of(index + 1, False)
            if with_answer[: len(prompt)] != prompt or prompt[: len(ids)] != ids:
                raise InputError(f"{where}: the chat template rewrites earlier turns; give one answer per conversation")
            mask += [False] * (len(prompt) - len(ids)) + [True] * (len(with_answer) - len(prompt))
            ids = with_answer
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = reason_of(error)
        raise InputError(f"{where}: the chat template refuses it ({reason})") from None
    if mask:
        mask[-1] = False  # nothing is drafted behind the token that ends the conversation
    return ids, mask


def completion_mask(tokenizer: Any, prompt: str, completion: str) -> tuple[list[int], list[bool]]:
    """Token ids of a prompt and its completion, and which of them belong to the completion. The two are tokenized one
    by one, as in generation, where the prompt is all there is."""
    before = list(tokenizer(prompt)["input_ids"])
    behind = list(tokenizer(completion, add_special_tokens=False)["input_ids"])
    mask = [False] * len(before) + [True] * len(behind)
    mask[-1:] = [False]  # nothing is drafted behind the last token
    return before + behind, mask
