"""transformers' rendering of chat templates, for tokenizers that are not transformers'.

Templates come from models, which nobody has to trust: transformers renders them in a sandbox that it hardens from
release to release, so there is no second one here. Only this rendering and what it needs is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def apply_chat_template(tokenizer: Any, messages: Sequence[Any], **options: Any) -> str:
    """The text of a conversation.

    tokenizer: has `get_chat_template(template, tools)` and `special_tokens_map`, all that transformers' method reads of
    it. options: of `PreTrainedTokenizerBase.apply_chat_template`, `tokenize=False` among them."""
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    return PreTrainedTokenizerBase.apply_chat_template(tokenizer, messages, **options)  # type: ignore[no-any-return]
