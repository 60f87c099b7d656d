"""chat"""

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
    """Token ids of a conversation, and which belong to answers: by comparing prefixes of the chat template. encode:
    what makes ids of messages, None for `template_ids`.

    Raises InputError when the template rewrites earlier turns, so that a prefix is no prefix."""
    ids: list[int] = []
    mask: list[bool] = []
    try:
        for number, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            asked = (encode or template_ids)(tokenizer, messages[:number], True)
            told = (encode or template_ids)(tokenizer, messages[: number + 1], False)
            if told[: len(asked)] != asked or asked[: len(ids)] != ids:
                raise InputError(f"{where}: the chat template rewrites earlier turns; give one answer per conversation")
            mask += [False] * (len(asked) - len(ids)) + [True] * (len(told) - len(asked))
            ids = told
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: the chat template refuses it ({first})") from None
    if mask:
        mask[-1] = False  # nothing is drafted behind the token that ends the conversation
    return ids, mask


def template_ids(tokenizer: Any, messages: Sequence[Mapping[str, Any]], ask: bool) -> list[int]:
    """Token ids of a conversation in the tokenizer's chat template; ask: ready for the assistant's turn."""
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
