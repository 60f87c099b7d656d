"""The packed KV cache layer: size, exactness, and every operation that generation strategies use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfrot.quant.activations import fake_quantize_kv
from dfrot.quant.sinks import Sinks
from dfrot.rotation.hadamard import hadamard_matrix, hadamard_plan
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
    states_out = cache.update(keys, values)
    for new, stored in zip((keys, values), states_out):
        assert torch.equal(stored, fake_quantize_kv(new, bits, symmetric, clip))
        assert stored.shape == new.shape


def test_rotated_keys_keep_their_scores() -> None:
    cache, (keys, values) = layer(8, r3=True), states(9, 0)
    stored, _ = cache.update(keys, values)
    h = hadamard_matrix(hadamard_plan(D)).float()
    assert torch.allclose(stored, fake_quantize_kv(keys @ h, 8, False), atol=1e-2)
    query = torch.randn(B, H, 4, D)
    exact = query @ keys.mT
    assert float(((query @ h) @ stored.mT - exact).norm() / exact.norm()) < 0.01


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_memory_is_really_packed(bits: int) -> None:
    cache = layer(bits)
    cache.update(*states(100, 0, torch.bfloat16))
    per_head = cache.nbytes / (100 * B * H * 2)
    assert per_head == D * bits / 8 + 3  # codes, a float16 scale, a zero code
    for step in range(30):
        cache.update(*states(1, step, torch.bfloat16))
    assert cache.packed is not None
    stored = sum(part.numel() * part.element_size() for store in cache.packed for part in store.parts)
    assert stored <= 2 * B * H * (D * bits / 8 + 3) * (130 + 64)


def test_growing_token_by_token_equals_one_call() -> None:
    keys, values = states(90, 0)
    at_once, steps = layer().update(keys, values), layer()
    parts = [steps.update(keys[:, :, i : i + 1], values[:, :, i : i + 1]) for i in range(90)][-1]
    assert torch.equal(at_once[0], parts[0])
    assert torch.equal(at_once[1], parts[1])
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
    states_out, _ = cache.update(*new)
    joined = torch.cat([keys[:, :, :2], new[0]], 2)
    assert torch.equal(states_out[:, :, :3], joined[:, :, :3]), "the third sink was cropped and written again"
    assert torch.equal(states_out[:, :, 3:], fake_quantize_kv(joined[:, :, 3:], 4, False))
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
        states_out = cache.update(extra[0], extra[1])
        full = [torch.cat([old[index], new], 2) for old, new in zip((keys, values), extra)]
        for stored, exact in zip(states_out, full):
            assert torch.equal(stored[:, :, sinks:], fake_quantize_kv(exact[:, :, sinks:], 4, False))
            assert torch.equal(stored[:, :, :sinks], exact[:, :, :sinks])

    beams = torch.tensor([2, 0, 0])
    after("reorder_cache", beams, beams)
    after("batch_select_indices", torch.tensor([1]), torch.tensor([1]))
    after("batch_select_indices", torch.tensor([True, False, True]), torch.tensor([0, 2]))
    after("batch_repeat_interleave", 2, torch.tensor([0, 0, 1, 1, 2, 2]))


def test_sinks_behind_left_padding() -> None:
    cache = layer(sinks=2)
    cache.sinks.starts = torch.tensor([0, 3, 5])
    keys, values = states(4, 0)
    states_out, _ = cache.update(keys, values)
    assert torch.equal(states_out[0, :, :2], keys[0, :, :2])
    assert torch.equal(states_out[1, :, 3], keys[1, :, 3])
    assert torch.equal(states_out[1, :, :3], fake_quantize_kv(keys[1, :, :3], 4, False))
    later = states(4, 1)
    states_out, _ = cache.update(*later)
    assert torch.equal(states_out[1, :, 4], later[0][1, :, 0])
    assert torch.equal(states_out[2, :, 5:7], later[0][2, :, 1:3])
    assert torch.equal(states_out[2, :, 7], fake_quantize_kv(later[0], 4, False)[2, :, 3])


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
