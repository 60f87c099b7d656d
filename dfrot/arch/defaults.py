"""Sizes that published `config.json` files leave out, with the values that transformers takes for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# of language models by themselves
_GEMMA2 = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256_000}
_STANDALONE: dict[str, dict[str, int]] = {"gemma2": _GEMMA2, "gemma3_text": {**_GEMMA2, "vocab_size": 262_208}}

# of language models inside a VLM, whose text_config is shorter: those of LLaVA. A plain Llama without them is refused.
_LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
_MISTRAL = {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8}
_INSIDE_VLM: dict[str, dict[str, int]] = {"llama": {**_LLAMA, "vocab_size": 32000}, "mistral": _MISTRAL}


def with_omitted_sizes(config: Mapping[str, Any], model_type: str, inside_vlm: bool = False) -> dict[str, Any]:
    """A language model's `config.json` with the sizes that it leaves out. inside_vlm: it is the text_config of one."""
    omitted = _INSIDE_VLM if inside_vlm else _STANDALONE
    return {**omitted.get(model_type, {}), **config}
