"""The output objects of transformers' models."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def base_model_output(hidden: Tensor, cache: Any) -> Any:
    """What a model without head returns: `last_hidden_state` [B, S, d] and `past_key_values`."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)
