"""The packed KV cache layer: size, exactness, and every operation that generation strategies use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from dfrot.errors import UnsupportedError
from dfrot.quant.activations import fake_quantize_kv
from dfrot.quant.sinks import Sinks
from dfrot.rotation.hadamard import hadamard_matrix, hadamard_plan
from dfrot.runtime.forward_hooks import ForwardHooks
from dfrot.runtime.kv_cache import DfqCacheLayer
from dfrot.runtime.packed_states import KVSpec

B, H, D = 3, 2, 32


def states(length: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(B, H, length, D, generator=generator).to(dtype) for _ in range(2))  # type: ignore[return-value]


def layer(bits: int = 4, symmetric: bool = False, clip: float = 1.0, sinks: int = 0, r3: bool = False) -> DfqCacheLayer:
    return DfqCacheLayer(KVSpec(bits, symmetric, clip, hadamard_plan(D) if r3 else None), Sinks(sinks))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("symmetric", "clip"), [(False, 1.0), (True, 0.9)])
def test_returns_what_the_simulated_quantizer_returns(bits: int, symmetric: bool, clip: float) -> None:
    cache, (keys, values) = layer(bits, symmetric, clip), states(9, bits)
    got = cache.update(keys, values)
    for new, held in zip((keys, values), got):
        assert torch.equal(held, fake_quantize_kv(new, bits, symmetric, clip))
        assert held.shape == new.shape


def test_rotated_keys_keep_their_scores() -> None:
    cache, (keys, values) = layer(8, r3=True), states(9, 0)
    held, _ = cache.update(keys, values)
    h = hadamard_matrix(hadamard_plan(D)).float()
    assert torch.allclose(held, fake_quantize_kv(keys @ h, 8, False), atol=1e-2)
    query = torch.randn(B, H, 4, D)
    exact = query @ keys.mT
    assert float(((query @ h) @ held.mT - exact).norm() / exact.norm()) < 0.01


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_memory_is_really_packed(bits: int) -> None:
    cache = layer(bits)
    cache.update(*states(100, 0, torch.bfloat16))
    per_head = cache.nbytes / (100 * B * H * 2)
    assert per_head == D * bits / 8 + 3  # codes, a float16 scale, a zero code
    for step in range(30):
        cache.update(*states(1, step, torch.bfloat16))
    assert cache.packed is not None
    held = sum(part.numel() * part.element_size() for store in cache.packed for part in store.parts)
    assert held <= 2 * B * H * (D * bits / 8 + 3) * (130 + 64)


def test_growing_token_by_token_equals_one_call() -> None:
    keys, values = states(90, 0)
    whole, steps = layer().update(keys, values), layer()
    parts = [steps.update(keys[:, :, i : i + 1], values[:, :, i : i + 1]) for i in range(90)][-1]
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])
    assert steps.get_seq_length() == 90
    assert steps.get_mask_sizes(5) == (95, 0)


def test_crop_then_other_tokens() -> None:
    keys, values = states(20, 0)
    cache = layer(sinks=3)
    cache.update(keys, values)
    cache.crop(-18)
    assert cache.get_seq_length() == 2
    cache.crop(0)
    new = states(4, 7)
    got, _ = cache.update(*new)
    joined = torch.cat([keys[:, :, :2], new[0]], 2)
    assert torch.equal(got[:, :, :3], joined[:, :, :3]), "the third sink was cropped and written again"
    assert torch.equal(got[:, :, 3:], fake_quantize_kv(joined[:, :, 3:], 4, False))
    cache.crop(100)
    assert cache.get_seq_length() == 6
    cache.crop(5)  # older transformers: an absolute length
    assert cache.get_seq_length() == 5


@pytest.mark.parametrize("sinks", [0, 2])
def test_batch_operations(sinks: int) -> None:
    keys, values = states(6, 0)
    reference = layer(sinks=sinks)
    reference.update(keys, values)
    more = states(1, 5)

    def after(change: str, argument: object, index: Tensor) -> None:
        cache = layer(sinks=sinks)
        cache.update(keys, values)
        getattr(cache, change)(argument)
        extra = tuple(part[index % B] for part in more)
        got = cache.update(extra[0], extra[1])
        full = [torch.cat([old[index], new], 2) for old, new in zip((keys, values), extra)]
        for held, exact in zip(got, full):
            assert torch.equal(held[:, :, sinks:], fake_quantize_kv(exact[:, :, sinks:], 4, False))
            assert torch.equal(held[:, :, :sinks], exact[:, :, :sinks])

    beams = torch.tensor([2, 0, 0])
    after("reorder_cache", beams, beams)
    after("batch_select_indices", torch.tensor([1]), torch.tensor([1]))
    after("batch_select_indices", torch.tensor([True, False, True]), torch.tensor([0, 2]))
    after("batch_repeat_interleave", 2, torch.tensor([0, 0, 1, 1, 2, 2]))


def test_sinks_behind_left_padding() -> None:
    cache = layer(sinks=2)
    cache.sinks.starts = torch.tensor([0, 3, 5])
    keys, values = states(4, 0)
    got, _ = cache.update(keys, values)
    assert torch.equal(got[0, :, :2], keys[0, :, :2])
    assert torch.equal(got[1, :, 3], keys[1, :, 3])
    assert torch.equal(got[1, :, :3], fake_quantize_kv(keys[1, :, :3], 4, False))
    later = states(4, 1)
    got, _ = cache.update(*later)
    assert torch.equal(got[1, :, 4], later[0][1, :, 0])
    assert torch.equal(got[2, :, 5:7], later[0][2, :, 1:3])
    assert torch.equal(got[2, :, 7], fake_quantize_kv(later[0], 4, False)[2, :, 3])


def test_reset_and_moves() -> None:
    cache = layer()
    cache.offload()
    cache.update(*states(5, 0))
    before = cache.nbytes
    cache.offload()
    cache.prefetch()
    assert cache.nbytes == before > 0
    cache.reset()
    assert cache.get_seq_length() == cache.nbytes == 0
    assert cache.update(*states(2, 1))[0].shape == (B, H, 2, D)


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
    assert [type(part) for part in empty.layers] == [DfqCacheLayer] * 2
    assert take(empty) is empty
    sliding = DynamicCache()
    sliding.layers = [DynamicSlidingWindowLayer(sliding_window=8), DynamicSlidingWindowLayer(sliding_window=8)]
    assert type(take(sliding).layers[1]) is DfqCacheLayer
    assert len(take(None)) == 2
    full = DynamicCache()
    full.update(*states(3, 0), 0)
    with pytest.raises(UnsupportedError, match="already holds"):
        take(full)
    other = ForwardHooks(KVSpec(8, False, 1.0, None), 0, n_layers=2)._cache(Base(), None, {})
    with pytest.raises(UnsupportedError, match="another model"):
        take(other)
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
