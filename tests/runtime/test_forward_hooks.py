"""The hooks of a loaded model: which cache a call gets, and which caches are refused."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from dfrot.errors import UnsupportedError
from dfrot.runtime.forward_hooks import ForwardHooks
from dfrot.runtime.kv_cache import DfqCacheLayer
from dfrot.runtime.packed_states import KVSpec


def test_which_caches_are_accepted() -> None:
    class Base(torch.nn.Module):
        class config:
            _attn_implementation = "dfq"
            use_cache = True

    runtime = ForwardHooks(KVSpec(4, False, 1.0, None), 0, n_layers=2)

    def take(cache: object, **options: object) -> DynamicCache:
        return runtime._cache(Base(), cache, options)

    empty = DynamicCache()
    assert take(empty) is empty
    assert [type(layer) for layer in empty.layers] == [DfqCacheLayer] * 2
    assert take(empty) is empty
    sliding = DynamicCache()
    sliding.layers = [DynamicSlidingWindowLayer(sliding_window=8), DynamicSlidingWindowLayer(sliding_window=8)]
    assert type(take(sliding).layers[1]) is DfqCacheLayer
    assert len(take(None)) == 2
    full = DynamicCache()
    full.update(torch.randn(1, 2, 3, 32), torch.randn(1, 2, 3, 32), 0)
    with pytest.raises(UnsupportedError, match="already holds"):
        take(full)
    foreign = ForwardHooks(KVSpec(8, False, 1.0, None), 0, n_layers=2)._cache(Base(), None, {})
    with pytest.raises(UnsupportedError, match="another model"):
        take(foreign)
    from transformers import LlamaConfig

    static = StaticCache(LlamaConfig(num_hidden_layers=2), max_cache_len=8)
    with pytest.raises(UnsupportedError, match="StaticCache"):
        take(static)
    Base.config._attn_implementation = "eager"
    with pytest.raises(UnsupportedError, match="eager"):
        take(None)
    Base.config._attn_implementation = "dfq"
    with pytest.raises(UnsupportedError, match="several sequences"):
        take(None, use_cache=False, position_ids=torch.tensor([[0, 1, 0, 1]]))
