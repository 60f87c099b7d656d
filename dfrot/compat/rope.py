"""What transformers' configurations say of rotary position embeddings (RoPE)."""

from __future__ import annotations

from typing import Any


def rope_types() -> tuple[str, ...]:
    """The types of RoPE that the installed transformers computes."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return tuple(dict.fromkeys(("default", *ROPE_INIT_FUNCTIONS)))


def types_named_in(config: Any) -> list[Any]:
    """The types of RoPE that the language model's configuration names: one, or one for every kind of attention."""
    stored = getattr(config.get_text_config(), "rope_parameters", None) or {}
    nested = [value for value in stored.values() if isinstance(value, dict)]
    return [parameters["rope_type"] for parameters in nested or [stored] if "rope_type" in parameters]
