"""Decoding steps read the packed cache directly: the same attention as on unpacked tensors, for every kind of mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfrot.compat.masks import visible_positions
from dfrot.quant.sinks import Sinks
from dfrot.rotation.hadamard import hadamard_plan
from dfrot.runtime.attention import dfq_attention, rotate_queries
from dfrot.runtime.kv_cache import CacheView, DfqCacheLayer
from dfrot.runtime.packed_states import KVSpec

B, HEADS, KV_HEADS, D = 2, 4, 2, 32


def states(heads: int, length: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, heads, length, D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def attention_module() -> Any:
    module: Any = nn.Module()
    module.num_key_value_groups, module.is_causal, module.training = HEADS // KV_HEADS, True, False
    rotate_queries(module, hadamard_plan(D))
    return module


def packed_and_unpacked(
    mask: Tensor | None, new: int, past: int = 20, sinks: int = 0, starts: Tensor | None = None
) -> list[Tensor]:
    """Attention of `new` positions after `past` cached ones, on the packed cache and on tensors."""
    outputs = []
    for as_view in (True, False):
        layer = DfqCacheLayer(KVSpec(4, False, 1.0, hadamard_plan(D)), Sinks(sinks), as_view=as_view)
        layer.sinks.starts = starts
        if past:
            layer.update(states(KV_HEADS, past, 0), states(KV_HEADS, past, 1))
        key, value = layer.update(states(KV_HEADS, new, 2), states(KV_HEADS, new, 3))
        assert isinstance(key, CacheView) == as_view
        out, _ = dfq_attention(attention_module(), states(HEADS, new, 4), key, value, mask, scaling=D**-0.5)
        assert out.shape == (B, new, HEADS, D)
        outputs.append(out)
    return outputs


def agree(mask: Tensor | None, new: int, served: bool = True, past: int = 20, **options: Any) -> None:
    assert (visible_positions(mask, new, past + new) is not None) == served
    packed, unpacked = packed_and_unpacked(mask, new, past, **options)
    assert torch.allclose(packed, unpacked, atol=1e-5)


def causal(new: int, past: int) -> Tensor:
    positions = torch.arange(past + new)
    return (positions <= positions[past:, None]).expand(B, 1, new, past + new)


def test_one_row_and_a_first_call_come_without_mask() -> None:
    agree(None, 1)
    agree(None, 30, past=0)


@pytest.mark.parametrize("new", [1, 5, 64])
def test_several_rows(new: int) -> None:
    agree(causal(new, 20), new)
    visible = visible_positions(causal(new, 20), new, 20 + new)
    assert visible is not None
    assert visible.first is None
    assert visible.tree is None


@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("sinks", [0, 3])
def test_left_padding(new: int, sinks: int) -> None:
    starts = torch.tensor([0, 6])
    mask = causal(new, 20) & (torch.arange(20 + new) >= starts[:, None, None, None])
    agree(mask, new, sinks=sinks, starts=starts)
    visible = visible_positions(mask, new, 20 + new)
    assert visible is not None
    assert visible.first is not None
    assert visible.first.tolist() == [[0] * new, [6] * new]


@pytest.mark.parametrize("window", [1, 3, 8, 22])
def test_sliding_windows(window: int) -> None:
    new, positions = 4, torch.arange(24)
    mask = causal(new, 20) & (positions > positions[20:, None] - window)
    agree(mask, new)


def test_trees_of_drafted_tokens() -> None:
    new = 6
    tree = torch.eye(new, dtype=torch.bool)
    for child, parent in ((1, 0), (2, 0), (3, 1), (4, 1), (5, 2)):
        tree[child] |= tree[parent]
    mask = torch.cat((torch.ones(new, 20, dtype=torch.bool), tree), 1).expand(B, 1, new, 20 + new)
    agree(mask, new)
    visible = visible_positions(mask, new, 26)
    assert visible is not None
    assert visible.tree is not None
    assert torch.equal(visible.tree[1], tree)


def test_other_masks_are_left_to_pytorch() -> None:
    holes = causal(3, 20).clone()
    holes[:, :, :, 4] = False
    agree(holes, 3, served=False)
    additive = torch.zeros(B, 1, 3, 23).masked_fill(~causal(3, 20), -torch.inf)
    agree(additive, 3, served=False)
    per_head = causal(3, 20).expand(B, HEADS, 3, 23)
    agree(per_head, 3, served=False)
    assert visible_positions(None, 3, 23) is None


def test_the_answer_is_kept_with_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = causal(3, 20)
    first = visible_positions(mask, 3, 23)
    monkeypatch.setattr("dfrot.compat.masks._read", None)
    assert visible_positions(mask, 3, 23) is first


def test_a_backward_pass_is_left_to_pytorch() -> None:
    layer = DfqCacheLayer(KVSpec(8, False, 1.0, None), Sinks(0), as_view=True)
    key, value = layer.update(states(KV_HEADS, 3, 0), states(KV_HEADS, 3, 1))
    query = states(HEADS, 3, 2).requires_grad_()
    module = attention_module()
    module.r3_base = None  # the transform has no derivative
    out, _ = dfq_attention(module, query, key, value, None, scaling=1.0)
    out.square().sum().backward()
    assert query.grad is not None
    assert query.grad.abs().sum() > 0


@pytest.mark.parametrize(("rows", "length"), [(1, 9), (5, 9), (9, 9)])
@pytest.mark.parametrize("form", ["none", "bool", "additive"])
def test_capped_attention_is_transformers_own(rows: int, length: int, form: str) -> None:
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, rows, 8, generator=generator)
    key, value = (torch.randn(2, 2, length, 8, generator=generator) for _ in range(2))
    visible = torch.arange(length) <= torch.arange(length - rows, length)[:, None]
    if form != "none":
        visible &= torch.arange(length) > torch.arange(length - rows, length)[:, None] - 4  # a window
    additive = torch.zeros(rows, length).masked_fill(~visible, torch.finfo(torch.float32).min).expand(2, 1, -1, -1)
    mask = {"none": None, "bool": visible.expand(2, 1, -1, -1), "additive": additive}[form]
    module = torch.nn.Module()
    module.num_key_value_groups, module.training = 2, False  # type: ignore[assignment]
    options = {"scaling": 0.7, "softcap": 0.9}
    expected, _ = eager_attention_forward(module, query, key, value, additive, **options)
    capped, _ = dfq_attention(module, query, key, value, mask, **options)
    torch.testing.assert_close(capped, expected)
    without, _ = eager_attention_forward(module, query, key, value, additive, scaling=0.7)
    assert not torch.allclose(without, expected, rtol=1e-2, atol=1e-2)
