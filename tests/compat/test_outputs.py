"""The head of a model, and generation, read a base model's output by these names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.compat.cache import new_cache
from dfrot.compat.forward import replace_forward
from dfrot.compat.outputs import base_model_output


@torch.no_grad()
def test_a_model_continues_from_our_output(build_model: Any, ids: Tensor) -> None:
    model, cache = build_model(), new_cache()
    hidden = model.model(ids).last_hidden_state
    replace_forward(model.model, lambda base, **call: base_model_output(hidden, cache))
    out = model(ids)
    assert torch.equal(out.logits, model.lm_head(hidden))
    assert out.past_key_values is cache
