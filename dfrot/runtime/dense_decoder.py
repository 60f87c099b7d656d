"""Decoding of a described model whose activations and cache have 16 bits: one native call per token.

The call is the native pass of drafts (dfrot_kernels/whole_blocks/draft.py), which computes what such a model's blocks
compute, from weights in bfloat16, float32 or tiles of 4 bits. Between the embedding and the final norm everything but
the cache is float32, where the modules round to the model's dtype behind every operation: logits differ by that
rounding. Prompts, and whatever does not fit, are left to the modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.scheme import FULL
from dfrot.runtime.described.cache import DenseCacheLayer, DescribedCache
from dfrot.runtime.native_calls import AngleTable, hook_tables
from dfrot.runtime.native_operands import NotServable
from dfrot_kernels import native
from dfrot_kernels.whole_blocks.draft import DTYPES, HEAD_DIM, DraftBlock, DraftPass, DraftShape, Slots, Weight

_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


class DenseDecoder:
    """The native path of one described model. unfit: why it never serves, or None. steps: tokens that it served."""

    def __init__(self, base: Any, arch: BoundArch) -> None:
        """base: the described model below its head, its weights read."""
        self.unfit: str | None = None
        self.steps = 0
        self._angles = AngleTable()
        self._table: tuple[list[tuple[int, int]], Tensor] | None = None  # buffers of the cache, and their table
        self._hooks: list[dict[Any, Any]] = []
        try:
            self._pass = _build(base, arch)
            self._hooks = hook_tables(base)
        except NotServable as reason:
            self.unfit = str(reason)

    def step(self, base: Any, ids: Tensor, cache: DescribedCache) -> Tensor | None:
        """Features [1, 1, d], behind the final norm, of one token, ids int64 [1, 1], behind what the cache holds, to
        which it is appended; None where the modules must compute them."""
        layers: list[DenseCacheLayer] = cache.layers
        if self.unfit is not None or ids.shape != (1, 1) or len(layers) != len(base.layers) or any(self._hooks):
            return None
        if any(type(layer) is not DenseCacheLayer or layer.batch != 1 for layer in layers) or not native.active():
            return None
        begin = layers[0].length
        x = base.embed_tokens(ids)[0]
        slots = Slots(torch.tensor([begin]), begin, begin, None, 1, 0, 0, None, None)
        angles = self._angles.until(begin + 1, base.rotary_emb, x[None])
        out = self._pass.run(x, None, self._buffers(layers), angles, slots)
        for layer in layers:
            layer.length = begin + 1
        self.steps += 1
        return out[None]

    def _buffers(self, layers: list[DenseCacheLayer]) -> Tensor:
        """The table of buffers with room for one more position; made anew where a buffer is another one."""
        stores = [layer.with_room(1) for layer in layers]
        # an address alone may be that of a buffer of another capacity that is gone
        places = [(buffer.data_ptr(), buffer.shape[2]) for store in stores for buffer in store]
        if self._table is None or self._table[0] != places:
            self._table = (places, self._pass.buffers([(keys[0], values[0]) for keys, values in stores]))
        return self._table[1]


def _build(base: Any, arch: BoundArch) -> DraftPass:
    """The native pass of a described model. Raises NotServable."""
    if not native.active():
        raise NotServable(f"no native library: {native.status()}")
    dtype = base.embed_tokens.weight.dtype if isinstance(base.embed_tokens, nn.Embedding) else torch.bfloat16
    if dtype not in DTYPES:
        raise NotServable(f"dtype {dtype}")
    if base.config.sliding_window:
        raise NotServable("a sliding window")
    if arch.head_dim > HEAD_DIM or arch.head_dim % 2:
        raise NotServable(f"heads of {arch.head_dim} values")
    shape = DraftShape(
        dtype=dtype,
        hidden=arch.hidden,
        heads=arch.n_heads,
        kv_heads=arch.n_kv_heads,
        head_dim=arch.head_dim,
        mlp=arch.intermediate,
        eps=float(base.config.rms_norm_eps),
    )
    return DraftPass(shape, [_block(block, dtype) for block in base.layers], base.norm.weight)


def _block(block: Any, dtype: torch.dtype) -> DraftBlock:
    attention, mlp = block.self_attn, block.mlp
    linears = [getattr(attention, name) for name in _ATTENTION] + [getattr(mlp, name) for name in _MLP]
    head_norms = [None if norm is None else norm.weight for norm in (attention.q_norm, attention.k_norm)]
    return DraftBlock(
        input_norm=block.input_layernorm.weight,
        mlp_norm=block.post_attention_layernorm.weight,
        weights=tuple(_weight(linear, dtype) for linear in linears),
        biases=tuple(linear.bias for linear in linears),
        q_norm=head_norms[0],
        k_norm=head_norms[1],
    )


def _weight(linear: Any, dtype: torch.dtype) -> Weight:
    """The weight of a linear that multiplies and adds a bias, if it has one. Raises NotServable for others."""
    if type(linear) is nn.Linear:
        if linear.weight.dtype != dtype or not linear.weight.is_contiguous():
            raise NotServable("weights of several dtypes")
        return linear.weight
    if type(linear) is not QuantLinear or linear.prepared is None:
        raise NotServable(f"a {type(linear).__name__} without tiles of 4 bits")
    if linear.plan.a_bits != FULL or linear.plan.hadamard is not None:
        raise NotServable("quantized or rotated activations")
    return linear.prepared
