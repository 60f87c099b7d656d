"""Attention is observed as it is computed, in whole models and in single blocks, and nothing stays behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dfrot.arch import open_described
from dfrot.compat.attention import implementation, registered
from dfrot.runtime.attention_hooks import AttentionCall, observe_attention, observe_block_attention
from dfrot.runtime.block_runner import BlockRunner
from dfrot.runtime.load import load_model


def attend(call: AttentionCall) -> Tensor:
    """The attention that a call describes, [B, S, heads, D]."""
    group = call.query.shape[1] // call.key.shape[1]
    key, value = (states.repeat_interleave(group, 1) for states in (call.key, call.value))
    scores = call.query @ key.mT * call.scale
    if call.cap is not None:
        scores = torch.tanh(scores / call.cap) * call.cap
    length = key.shape[2]
    if call.mask is None:
        assert call.causal
        scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf)
    elif call.mask.dtype == torch.bool:
        scores = scores.masked_fill(~call.mask, -torch.inf)
    else:
        scores = scores + call.mask
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2", "qwen3_moe"])
@torch.no_grad()
def test_a_block_is_observed(model_type: str, kit: SimpleNamespace, tmp_path: Path, ids: Tensor) -> None:
    runner = BlockRunner(*open_described(kit.build(tmp_path / "source", model_type)))
    block, hidden = runner.block(1), runner.embed(ids)
    expected = runner.run(block, hidden)
    config = block.self_attn.config  # type: ignore[union-attr]
    before = implementation(config)
    calls: list[AttentionCall] = []
    mixed: list[Tensor] = []
    handle = block.self_attn.o_proj.register_forward_pre_hook(lambda _, args: mixed.append(args[0]))  # type: ignore[union-attr]
    with observe_block_attention(block, calls.append):
        observed = runner.run(block, hidden)
    handle.remove()
    (call,) = calls
    assert call.layer == 1
    assert call.cap == (2.0 if model_type == "gemma2" else None)
    torch.testing.assert_close(attend(call).flatten(2), mixed[0], rtol=1e-4, atol=1e-4)
    if before == "eager":  # with caps: computed by our own function meanwhile
        torch.testing.assert_close(observed, expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(observed, expected)
    assert implementation(config) == before
    runner.run(block, hidden)
    assert len(calls) == 1


@torch.no_grad()
def test_a_model_is_observed(kit: SimpleNamespace, tmp_path: Path, ids: Tensor) -> None:
    model = load_model(kit.build(tmp_path / "source"))
    function, expected = registered("sdpa"), model(ids).logits
    layers: list[int] = []
    with observe_attention(model, lambda layer, *call: layers.append(layer)):
        assert torch.equal(model(ids).logits, expected)
    assert layers == [0, 1]
    assert registered("sdpa") is function
