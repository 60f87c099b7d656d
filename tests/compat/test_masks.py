"""Masks are boolean, [B, 1, S, length], one tensor for every layer of a kind, and left out where none is needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from dfrot.compat import attention as table
from dfrot.compat.masks import causal_mask, visible_positions


@torch.no_grad()
def masks_of(model: Any, **call: Any) -> list[Any]:
    """The mask that each layer gets in one call."""
    masks = []

    def record(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        masks.append(mask)
        return table.sdpa(module, query, key, value, mask, **options)

    table.register("dfq-compat-masks", record)
    table.set_implementation(model.config, "dfq-compat-masks")
    model(**call)
    return masks


def test_no_mask_for_a_first_call_and_for_one_row(build_model: Any, ids: Tensor) -> None:
    model, cache = build_model(), DynamicCache()
    assert masks_of(model, input_ids=ids, past_key_values=cache) == [None, None]
    assert masks_of(model, input_ids=ids[:, :1], past_key_values=cache) == [None, None]
    assert visible_positions(None, 10, 10) == visible_positions(None, 1, 11) == (None, None)


def test_several_rows_behind_a_cache(build_model: Any, ids: Tensor) -> None:
    model, cache = build_model(), DynamicCache()
    masks_of(model, input_ids=ids, past_key_values=cache)
    first, second = masks_of(model, input_ids=ids[:, :3], past_key_values=cache)
    assert first is second, "what is read off a mask is kept with the tensor"
    assert first.dtype == torch.bool
    assert first.shape in ((2, 1, 3, 13), (1, 1, 3, 13))
    assert visible_positions(first, 3, 13) == (None, None)


def test_left_padding_is_read_off_the_mask(build_model: Any, ids: Tensor) -> None:
    model, cache = build_model(), DynamicCache()
    padding = torch.ones(2, 11, dtype=torch.long)
    padding[0, :4] = 0
    masks_of(model, input_ids=ids, attention_mask=padding[:, :10], past_key_values=cache)
    mask, _ = masks_of(model, input_ids=ids[:, :1], attention_mask=padding, past_key_values=cache)
    visible = visible_positions(mask, 1, 11)
    assert visible is not None
    assert visible.first is not None
    assert visible.first.tolist() == [[4], [0]]
    assert visible.tree is None


def test_a_window_hides_the_oldest_positions(build_model: Any, ids: Tensor) -> None:
    """mistral: 6 positions, the row's own included; its cache keeps every position once dfq's layers are in it."""
    model = build_model("mistral")
    (mask, _) = masks_of(model, input_ids=ids)
    assert mask.dtype == torch.bool
    assert mask[0, 0].sum(-1).tolist() == [1, 2, 3, 4, 5, 6, 6, 6, 6, 6]


def test_a_four_dimensional_mask_is_taken_as_it_is(build_model: Any, ids: Tensor) -> None:
    """Verification passes [1, 1, S, length] of its own, bool."""
    model, own = build_model(), torch.ones(1, 1, 10, 10, dtype=torch.bool).tril()
    masks = masks_of(model, input_ids=ids[:1], attention_mask=own)
    assert all(torch.equal(mask, own) for mask in masks)


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_masks_made_for_single_blocks(build_model: Any, name: str, sliding: bool) -> None:
    """Boolean or none for "sdpa", additive for "eager", as a whole model would make them."""
    model = build_model("mistral")
    table.set_implementation(model.config, name)
    mask = causal_mask(model.config, torch.zeros(1, 10, 32), torch.arange(10)[None], sliding)
    visible = torch.ones(10, 10, dtype=torch.bool).tril()
    visible = visible.triu(-5) if sliding else visible
    if name == "eager":
        assert torch.equal(mask[0, 0] == 0, visible)
        assert mask.dtype == torch.float32
    elif sliding:
        assert torch.equal(mask[0, 0], visible)
    else:
        assert mask is None
