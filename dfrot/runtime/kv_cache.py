"""A transformers cache layer that keeps keys and values packed: 2 to 8 bits, one scale per token and head.

Keys are rotated (R3) in float32, then quantized, so they are stored and returned in the rotated basis; the
attention function `dfq` rotates the queries alike. Memory is laid out [position, batch, head, ...]: the part in
use is one contiguous block, and appending a token writes in place. Sliding-window models keep every position and
rely on the mask.

A few query rows (decoding, checking drafted tokens) read the packed memory as it is: `update` then returns a
`CacheView` instead of tensors. Long stretches of new positions are unpacked for PyTorch's attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from dfrot.quant.sinks import Sinks
from dfrot.rotation.online import HadamardSpec
from dfrot_kernels.ops.kv_attention.reference import MAX_ROWS

MIN_GROWTH = 64  # positions; larger buffers grow by a quarter: few copies, at most 25 % unused


@dataclass(frozen=True)
class KVSpec:
    """How keys and values are stored; `r3` is applied to keys before quantization."""

    bits: int
    symmetric: bool
    clip: float
    r3: HadamardSpec | None


@lru_cache(maxsize=64)
def _base(spec: HadamardSpec, device: torch.device) -> Tensor:
    return spec.base().to(device)


class _Packed:
    """Keys or values of one layer: codes uint8 [capacity, B, H, bytes], scale float16, zero uint8 [capacity, B, H]
    (asymmetric only)."""

    def __init__(self, spec: KVSpec, head_dim: int) -> None:
        self.spec, self.head_dim = spec, head_dim
        self.parts: list[Tensor] = []

    def reserve(self, needed: int, used: int, batch: int, heads: int, device: torch.device) -> None:
        """Room for `needed` positions; the first `used` keep their content."""
        if self.parts and self.parts[0].shape[0] >= needed:
            return
        capacity = needed + max(MIN_GROWTH, needed // 4) if self.parts else needed
        rows, width = (capacity, batch, heads), (self.head_dim * self.spec.bits + 7) // 8
        grown = [
            torch.empty(*rows, width, dtype=torch.uint8, device=device),
            torch.empty(rows, dtype=torch.float16, device=device),
        ]
        if not self.spec.symmetric:
            grown.append(torch.empty(rows, dtype=torch.uint8, device=device))
        for old, larger in zip(self.parts, grown):
            larger[:used] = old[:used]
        self.parts = grown

    def buffers(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes, scale and zero (None: symmetric), as the ops take them."""
        codes, scale = self.parts[:2]
        return codes, scale, None if self.spec.symmetric else self.parts[2]

    def read(self, used: int, dtype: torch.dtype) -> Tensor:
        """Positions 0 .. used as [used, B, H, D]."""
        codes, scale, zero = self.buffers()
        zero = None if zero is None else zero[:used]
        stored = (codes[:used], scale[:used], zero)
        out: Tensor = torch.ops.dfq.kv_dequantize(*stored, self.head_dim, self.spec.bits, dtype)
        return out

    def select(self, index: Tensor, used: int) -> None:
        """Keep (or repeat) sequences of the batch."""
        self.parts = [part[:used].index_select(1, index.to(part.device)) for part in self.parts]

    def to(self, device: torch.device | str) -> None:
        self.parts = [part.to(device, non_blocking=True) for part in self.parts]


class CacheView:
    """What one `update` left in a layer, for the attention function: packed, or as tensors."""

    def __init__(self, layer: DfqCacheLayer, stores: tuple[_Packed, _Packed], length: int) -> None:
        self.layer, self.stores, self.length = layer, stores, length

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, length, D], as the quantized cache holds them."""
        out = [store.read(self.length, self.layer.dtype) for store in self.stores]
        if self.layer.exact is not None:
            self.layer._restore_exact(out)
        return out[0].permute(1, 2, 0, 3), out[1].permute(1, 2, 0, 3)

    def attend(self, query: Tensor, scaling: float, first: Tensor | None, tree: Tensor | None) -> Tensor:
        """query [B, heads, S, D], not yet rotated, at the last S positions -> [B, S, heads, D].

        first, tree: what each row sees, as `dfq::kv_attention` takes it."""
        layer, (keys, values) = self.layer, self.stores
        sinks = (*layer.exact, layer.starts) if layer.exact is not None else (None, None, None)
        where = (self.length, values.head_dim, layer.spec.bits, scaling, *layer.turn(query.device))
        out: Tensor = torch.ops.dfq.kv_attention(
            query.transpose(1, 2), *keys.buffers(), *values.buffers(), *where, first, tree, *sinks
        )
        return out


class DfqCacheLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values. keep: False for a call without cache, which quantizes but stores nothing.
    views: the attention function understands a `CacheView`."""

    is_croppable = True

    def __init__(self, spec: KVSpec, sinks: Sinks, keep: bool = True, views: bool = False) -> None:
        super().__init__()
        self.spec, self.sinks, self.keep, self.views = spec, sinks, keep, views
        self._clear()

    def _clear(self) -> None:
        self.length = 0
        self.is_initialized = False
        self.keys = self.values = None
        self.packed: tuple[_Packed, _Packed] | None = None
        self.exact: tuple[Tensor, Tensor] | None = None  # sinks: [N, B, H, D] in the model's dtype
        self.starts: Tensor | None = None

    def _stores(self, key_states: Tensor, value_states: Tensor) -> tuple[_Packed, _Packed]:
        return _Packed(self.spec, key_states.shape[-1]), _Packed(self.spec, value_states.shape[-1])

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.packed = self._stores(key_states, value_states)
        self.is_initialized = True

    def adopt(self, dtype: torch.dtype, device: torch.device, head_dim: int) -> None:
        """What `lazy_initialization` learns from the first keys, said beforehand."""
        self.dtype, self.device = dtype, device
        self.packed = (_Packed(self.spec, head_dim), _Packed(self.spec, head_dim))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """New keys and values [B, H, S, D] in; all of them [B, H, length, D] out, as the quantized cache holds them,
        or (`views`, few positions) one CacheView twice."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.packed is not None
        batch, heads, new, _ = key_states.shape
        begin, self.length = self.length, self.length + new
        if self.sinks.count:
            self._keep_exact(key_states, value_states, begin)
        stores = self.packed if self.keep else self._stores(key_states, value_states)
        for store in stores:
            store.reserve(self.length, begin, batch, heads, key_states.device)
        buffers = (*stores[0].buffers(), *stores[1].buffers())
        rows = key_states.transpose(1, 2), value_states.transpose(1, 2)
        turn = self.turn(key_states.device)
        torch.ops.dfq.kv_append(*rows, *buffers, begin, self.spec.bits, self.spec.clip, *turn)
        view = CacheView(self, stores, self.length)
        return (view, view) if self.views and new <= MAX_ROWS else view.tensors()

    def turn(self, device: torch.device) -> tuple[Tensor | None, int]:
        """R3 as the ops take it: base and block."""
        r3 = self.spec.r3
        return (None, 0) if r3 is None else (_base(r3, device), r3.block)

    # --- sinks -------------------------------------------------------------------------------------------------

    def _slots(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Cache positions [N, B] of the sinks behind left padding, and the matching batch indices."""
        count, batch = self.sinks.count, len(starts)
        slots = torch.arange(count, device=self.device)[:, None] + starts[None, :]
        return slots, torch.arange(batch, device=self.device)[None, :].expand(count, batch)

    def _keep_exact(self, keys: Tensor, values: Tensor, begin: int) -> None:
        """Copy the sinks among the new positions (begin .. length) of keys, values [B, H, S, D] aside."""
        count = self.sinks.count
        if self.exact is None:
            self.starts = None if self.sinks.starts is None else self.sinks.starts.to(self.device)
            self.last_sink = count + (0 if self.starts is None else int(self.starts.max()))
        if self.exact is not None and begin >= self.last_sink:
            return
        if self.spec.r3 is not None:
            keys = torch.ops.dfq.hadamard(keys.float(), *self.turn(keys.device))
        keys, values = keys.permute(2, 0, 1, 3), values.permute(2, 0, 1, 3)
        if self.exact is None:
            self.exact = (
                keys.new_zeros((count, *keys.shape[1:]), dtype=self.dtype),
                values.new_zeros((count, *values.shape[1:])),
            )
        if self.starts is None:
            end = min(count, self.length)
            if begin < end:
                for kept, fresh in zip(self.exact, (keys, values)):
                    kept[begin:end] = fresh[: end - begin]
            return
        slots, batch = self._slots(self.starts)
        new = (slots >= begin) & (slots < self.length)
        for kept, fresh in zip(self.exact, (keys, values)):
            kept[new] = fresh[slots[new] - begin, batch[new]].to(kept.dtype)

    def _restore_exact(self, out: list[Tensor]) -> None:
        """Put the sinks over their quantized twins."""
        assert self.exact is not None
        if self.starts is None:
            end = min(self.sinks.count, self.length)
            for kept, full in zip(self.exact, out):
                full[:end] = kept[:end]
            return
        slots, batch = self._slots(self.starts)
        valid = slots < self.length
        for kept, full in zip(self.exact, out):
            full[slots[valid], batch[valid]] = kept[valid]

    # --- transformers' cache interface -------------------------------------------------------------------------

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + int(query_length), 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        """The older name of `get_max_length`."""
        return -1

    def reset(self) -> None:
        self._clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Negative: forget that many of the last positions. Positive (older transformers): keep that many."""
        if tokens_to_remove < 0:
            self.length = max(0, self.length + tokens_to_remove)
        elif tokens_to_remove > 0:
            self.length = min(self.length, tokens_to_remove)

    def _select(self, index: Tensor) -> None:
        if self.length == 0 or self.packed is None:
            return
        for store in self.packed:
            store.select(index, self.length)
        index = index.to(self.device)
        if self.exact is not None:
            self.exact = (self.exact[0].index_select(1, index), self.exact[1].index_select(1, index))
        if self.starts is not None:
            self.starts = self.starts.index_select(0, index)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(torch.arange(self._batch(), device=indices.device)[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select(torch.arange(self._batch()).repeat_interleave(repeats))

    def _batch(self) -> int:
        return self.packed[0].parts[0].shape[1] if self.packed and self.packed[0].parts else 0

    def offload(self) -> None:
        self._move("cpu")

    def prefetch(self) -> None:
        if self.is_initialized:
            self._move(self.device)

    def _move(self, device: torch.device | str) -> None:
        for store in self.packed or ():
            store.to(device)

    @property
    def nbytes(self) -> int:
        """Bytes held for the positions in use (without the room to grow)."""
        if self.packed is None:
            return 0
        parts = [part[: self.length] for store in self.packed for part in store.parts]
        return sum(part.numel() * part.element_size() for part in [*parts, *(self.exact or ())])
