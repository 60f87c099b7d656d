"""What transformers' configurations say of rotary position embeddings (RoPE)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

BY_LENGTH = ("dynamic", "longrope")
"""Types of RoPE whose angles depend on how long the text is: on the largest position of a pass."""


def rope_types() -> tuple[str, ...]:
    """The types of RoPE that the installed transformers computes."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return tuple(dict.fromkeys(("default", *ROPE_INIT_FUNCTIONS)))


def types_named_in(config: Any) -> list[Any]:
    """The types of RoPE that the language model's configuration names: one, or one for every kind of attention."""
    stored = getattr(config.get_text_config(), "rope_parameters", None) or {}
    nested = [value for value in stored.values() if isinstance(value, dict)]
    return [parameters["rope_type"] for parameters in nested or [stored] if "rope_type" in parameters]


@contextlib.contextmanager
def angles_row_by_row(decoder: nn.Module) -> Iterator[None]:
    """Give every row of a pass the angles that it has alone, as when one token is decoded at a time. Types of RoPE that
    depend on positions alone do so anyway."""
    rotary: Any = getattr(decoder, "rotary_emb", None)
    if getattr(rotary, "rope_type", None) not in BY_LENGTH:
        yield
        return
    whole = rotary.forward

    def row_by_row(x: Tensor, position_ids: Tensor, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
        rows = [whole(x, part, *more, **named) for part in torch.split(position_ids, 1, dim=1)]
        return torch.cat([cos for cos, _ in rows], 1), torch.cat([sin for _, sin in rows], 1)

    rotary.forward = row_by_row
    try:
        yield
    finally:
        del rotary.forward
