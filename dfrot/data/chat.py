"""Conversations as token ids, by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dfrot.errors import InputError

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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: the chat template refuses it ({reason})") from None
    if mask:
        mask[-1] = False  # nothing is drafted behind the token that ends the conversation
    return ids, mask
