"""A DynamicCache holds a list of layers that may be replaced, and calls them by these names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from dfrot.compat.attention import set_implementation
from dfrot.compat.cache import is_dynamic, new_cache, replace_layers
from dfrot.quant.sinks import Sinks
from dfrot.runtime.kv_cache import DfqCacheLayer
from dfrot.runtime.packed_states import KVSpec


class RecordingLayer(DynamicLayer):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.updates = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.updates += 1
        return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[no-any-return]


@torch.no_grad()
def test_replaced_layers_serve_a_model(build_model: Any, ids: Tensor) -> None:
    model, cache = build_model(), new_cache()
    assert len(cache.layers) == 0
    replace_layers(cache, [RecordingLayer(), RecordingLayer()])
    first = model(ids, past_key_values=cache)
    assert first.past_key_values is cache, "the caller's object is kept"
    step = model(ids[:, :1], past_key_values=cache).logits[:, -1]
    assert [layer.updates for layer in cache.layers] == [2, 2]
    assert cache.get_seq_length() == 11
    torch.testing.assert_close(step, model(torch.cat([ids, ids[:, :1]], 1)).logits[:, -1])


@torch.no_grad()
def test_layers_of_a_sliding_model_are_not_created_anew(build_model: Any, ids: Tensor) -> None:
    """A DynamicCache made for a configuration may hold sliding layers, which drop positions; ours replace them."""
    model = build_model("mistral")
    cache = DynamicCache(config=model.config)
    replace_layers(cache, [RecordingLayer(), RecordingLayer()])
    model(ids, past_key_values=cache)
    assert [type(layer) for layer in cache.layers] == [RecordingLayer] * 2
    assert cache.layers[0].keys.shape[2] == 10


def test_which_caches_are_plain(build_model: Any) -> None:
    class Subclass(DynamicCache):  # type: ignore[misc]
        pass

    assert is_dynamic(new_cache())
    assert not is_dynamic(Subclass())
    assert not is_dynamic(StaticCache(build_model().config, max_cache_len=8))


@pytest.mark.parametrize(
    "method",
    ["update", "lazy_initialization", "get_seq_length", "get_mask_sizes", "reset", "crop", "reorder_cache"]
    + ["batch_select_indices", "batch_repeat_interleave", "offload", "prefetch"],
)
def test_a_packed_layer_has_what_a_layer_of_transformers_has(method: str) -> None:
    assert callable(getattr(DynamicLayer, method))
    assert method in vars(DfqCacheLayer)


def test_a_packed_layer_lacks_nothing_that_a_layer_of_transformers_has() -> None:
    """It has no base class of transformers': whatever a release adds to that class shows here."""
    layer = DfqCacheLayer(KVSpec(4, False, 1.0, None), Sinks(0))
    assert not [name for name in dir(DynamicLayer()) if not name.startswith("_") and not hasattr(layer, name)]


def test_the_length_limit_has_one_of_two_names() -> None:
    names = {"get_max_length", "get_max_cache_shape"}
    present = {name for name in names if hasattr(DynamicLayer, name)}
    assert present
    layer = DfqCacheLayer(KVSpec(4, False, 1.0, None), Sinks(0))
    base = DynamicLayer()
    for name in present:
        assert getattr(layer, name)() == getattr(base, name)() == -1


def test_negative_crop_removes_that_many_positions() -> None:
    layer = DynamicLayer()
    layer.update(torch.zeros(1, 1, 5, 8), torch.zeros(1, 1, 5, 8))
    layer.crop(-2)
    assert layer.get_seq_length() == 3


@torch.no_grad()
def test_beam_search_and_sampling_call_the_layers(build_model: Any, ids: Tensor) -> None:
    """Through whole models: beams reorder a packed cache, several samples repeat it."""
    from dfrot.runtime.attention import NAME, register_attention
    from dfrot.runtime.forward_hooks import ForwardHooks

    model = build_model()
    register_attention()
    set_implementation(model.config, NAME)
    ForwardHooks(KVSpec(8, False, 1.0, None), 0, 2).attach(model.base_model)
    for options in ({"num_beams": 3, "do_sample": False}, {"do_sample": True, "num_return_sequences": 2}):
        out = model.generate(ids, max_new_tokens=4, pad_token_id=0, **options)
        assert out.shape[1] == 14
