"""The attention of training: products of bfloat16 against PyTorch's float32, sinks that stay exact."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dfrot.quant.activations import fake_quantize_kv
from dfrot.runtime import trainable_attention
from dfrot.runtime.packed_states import KVSpec


@pytest.mark.parametrize(("heads", "kv_heads", "length"), [(4, 2, 300), (3, 1, 128), (2, 2, 7)])
def test_causal_attention_and_its_gradient_are_those_of_float32(heads: int, kv_heads: int, length: int) -> None:
    torch.manual_seed(0)
    shapes = [(2, count, length, 32) for count in (heads, kv_heads, kv_heads)]
    states = [torch.randn(shape, requires_grad=True) for shape in shapes]
    weights = torch.randn(2, heads, length, 32)
    query, key, value = states
    repeated = (x.repeat_interleave(heads // kv_heads, 1) for x in (key, value))
    expected = F.scaled_dot_product_attention(query, *repeated, is_causal=True, scale=0.2)
    exact = torch.autograd.grad((expected * weights).sum(), states)
    out = trainable_attention.causal_attention(query, key, value, 0.2)
    gradients = torch.autograd.grad((out.float() * weights).sum(), states)
    for ours, theirs in zip((out, *gradients), (expected, *exact)):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.015  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("fast", [True, False])
def test_keys_and_values_are_rounded_except_for_sinks(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainable_attention, "fast_bfloat16", lambda: fast)
    torch.manual_seed(0)
    kv = KVSpec(4, False, 1.0, None)
    module: Any = SimpleNamespace(dfq_kv=kv, dfq_sinks=2, is_causal=True, num_key_value_groups=1, training=False)
    query, key, value = (torch.randn(1, 2, 9, 32, requires_grad=True) for _ in range(3))
    out, _ = trainable_attention.trainable_attention(module, query, key, value, None)
    stored = [torch.cat([x[:, :, :2], fake_quantize_kv(x, 4, False)[:, :, 2:]], 2) for x in (key, value)]
    expected = F.scaled_dot_product_attention(query, *stored, is_causal=True).transpose(1, 2)
    assert float((out - expected).norm() / expected.norm()) < (0.01 if fast else 1e-6)
    out.square().sum().backward()
    assert all(float(x.grad.abs().max()) > 0 for x in (query, key, value) if x.grad is not None)
    assert key.grad is not None
