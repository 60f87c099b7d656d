"""Conversations in a tokenizer's chat template, and which of their tokens are answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dfrot.errors import InputError


def answer_mask(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    where: str,
    encode: Callable[[Any, Sequence[dict[str, Any]], bool], list[int]] | None = None,
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which of them belong to answers: by comparing prefixes of the chat template.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        messages: the conversation, {"role", "content"} each.
        where: its location, with which messages of errors begin.
        encode: (tokenizer, messages, ready for an answer) -> token ids; None for `template_ids`.

    The last token is never marked: nothing is drafted behind it. Raises InputError when the template refuses the
    conversation or rewrites earlier turns, so that a prefix of the conversation is no prefix of the tokens."""
    encode = encode or template_ids
    ids: list[int] = []
    mask: list[bool] = []
    try:
        for number, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            prompt = encode(tokenizer, messages[:number], True)
            answered = encode(tokenizer, messages[: number + 1], False)
            if answered[: len(prompt)] != prompt or prompt[: len(ids)] != ids:
                raise InputError(f"{where}: the chat template rewrites earlier turns; give one answer per conversation")
            mask += [False] * (len(prompt) - len(ids)) + [True] * (len(answered) - len(prompt))
            ids = answered
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: the chat template refuses it ({reason})") from None
    if mask:
        mask[-1] = False
    return ids, mask


def template_ids(tokenizer: Any, messages: Sequence[Mapping[str, Any]], ask: bool) -> list[int]:
    """Token ids of a conversation in the tokenizer's chat template; ask: end where the assistant's answer begins."""
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
