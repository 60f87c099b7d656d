"""Attention that gradients pass through while keys and values are rounded as the packed cache rounds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.compat import attention as table
from dfrot.processor import fast_bfloat16
from dfrot.quant.activations import fake_quantize_kv
from dfrot.quant.key_shift import TENSOR as KEY_SHIFT
from dfrot.quant.modules.rotated_linear import hadamard
from dfrot.runtime.packed_states import KVSpec
from dfrot.straight_through import straight_through

NAME = "dfq-trainable"
CAUSAL = "dfq-causal"
ROWS = 128  # of a block of queries: few enough that keys to their right are hardly computed


def trainable_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention over keys and values [B, kv_heads, length, D] rounded as the packed cache rounds them, leading
    `dfq_sinks` positions excepted; query [B, heads, S, D]. See dfrot.compat.attention.AttentionFunction.

    What a packed cache does to keys before it rounds them (R3, a shift) is done here, too."""
    kv: KVSpec = module.dfq_kv
    query, key, value = query.float(), key.float(), value.float()
    if getattr(module, "r3_base", None) is not None:
        query, key = (hadamard(x, module.r3_base, module.r3_block) for x in (query, key))
    if (shift := getattr(module, KEY_SHIFT, None)) is not None:
        key = key - shift.float()[:, None]
    key, value = (_rounded(states, kv, module.dfq_sinks) for states in (key, value))
    return fast_attention(module, query, key, value, mask, **kwargs)


def fast_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention for training and evaluation of whole windows: by `causal_attention` where there is no mask and the
    processor multiplies bfloat16, else by PyTorch's."""
    if mask is None and fast_bfloat16() and not kwargs.get("dropout") and query.shape[2] == key.shape[2]:
        scaling = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return causal_attention(query, key, value, scaling).to(query.dtype).transpose(1, 2), None
    return table.sdpa(module, query, key, value, mask, **kwargs)


def use_fast_attention(model: Any) -> None:
    """Let a 16-bit model that runs PyTorch's attention run `fast_attention`."""
    if table.implementation(model.base_model.config) == "sdpa":
        table.register(CAUSAL, fast_attention)
        table.set_implementation(model.base_model.config, CAUSAL)


def _rounded(states: Tensor, kv: KVSpec, sinks: int) -> Tensor:
    """Keys or values [B, kv_heads, length, D] as the packed cache returns them, with the gradient of `states`."""

    def stored(x: Tensor) -> Tensor:
        out = fake_quantize_kv(x, kv.bits, kv.symmetric, kv.clip)
        out[:, :, :sinks] = x[:, :, :sinks]
        return out

    return straight_through(states, stored)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention of query [B, heads, S, D] over key and value [B, kv_heads, S, D], float32, by products of
    bfloat16 -> bfloat16 [B, heads, S, D].

    PyTorch's fused attention for CPUs takes twice as long forward and backward at 512 positions."""
    batch, heads, length, dim = key.shape
    grouped = (query * scaling).bfloat16().view(batch * heads, -1, length, dim)
    states = (x.bfloat16().flatten(0, 1) for x in (key, value))
    out: Tensor = _CausalAttention.apply(grouped, *states)  # type: ignore[no-untyped-call]
    return out.view(batch, -1, length, dim)


class _CausalAttention(torch.autograd.Function):
    """query bfloat16 [n, group, S, D], scaled; key, value [n, S, D] -> [n, group, S, D]. Weights are computed again in
    the backward pass: only inputs and the output are kept."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        out = torch.empty_like(query)
        for begin, end, rows in _blocks(query):
            product = torch.bmm(_weights(rows, key, begin, end), value[:, :end])
            out[:, :, begin:end] = product.view(*out.shape[:2], end - begin, -1)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, out = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_query = torch.empty_like(query)
        of_key, of_value = (torch.zeros(key.shape) for _ in range(2))  # float32: sums over blocks
        inner = (gradient.float() * out).sum(-1, keepdim=True)  # [n, group, S, 1]
        for begin, end, rows in _blocks(query):
            weights = _weights(rows, key, begin, end)
            upper = gradient[:, :, begin:end].flatten(1, 2)
            of_value[:, :end] += torch.bmm(weights.mT, upper)
            slope = torch.bmm(upper, value[:, :end].mT)
            slope.sub_(inner[:, :, begin:end].flatten(1, 2)).mul_(weights)  # of the scores
            of_key[:, :end] += torch.bmm(slope.mT, rows)
            of_query[:, :, begin:end] = torch.bmm(slope, key[:, :end]).view(*query.shape[:2], end - begin, -1)
        return of_query, of_key.bfloat16(), of_value.bfloat16()


def _blocks(query: Tensor) -> Any:
    """(begin, end, query rows [n, group * (end - begin), D]) of the blocks of query [n, group, S, D]."""
    for begin in range(0, query.shape[2], ROWS):
        end = min(begin + ROWS, query.shape[2])
        yield begin, end, query[:, :, begin:end].flatten(1, 2)


def _weights(rows: Tensor, key: Tensor, begin: int, end: int) -> Tensor:
    """Attention weights bfloat16 [n, group * (end - begin), end] of query rows at positions begin .. end."""
    scores = torch.bmm(rows, key[:, :end].mT)
    own = scores.view(len(rows), -1, end - begin, end)[..., begin:]
    future = torch.ones(end - begin, end - begin, dtype=torch.bool).triu_(1)
    own.masked_fill_(future, -torch.inf)
    return scores.softmax(-1)
