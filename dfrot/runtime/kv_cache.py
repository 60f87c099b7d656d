"""A transformers cache layer that keeps keys and values packed: 2 to 8 bits, one scale per token and head.

Keys are rotated (R3) in float32, shifted where the checkpoint asks for it, and then quantized, so they are stored and
returned in that basis; the attention function `dfq` rotates the queries in the same way, and its softmax does not see
the shift. Sliding-window models keep every position and rely on the mask.

A few query rows (decoding, verifying drafts) read the packed memory as it is: `update` then returns a `CacheView`
instead of tensors. Many new positions are dequantized for PyTorch's attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.quant.sinks import Sinks
from dfrot.runtime.packed_states import KVSpec, PackedStates
from dfrot.runtime.sink_states import SinkStates
from dfrot_kernels.ops.kv_attention.reference import MAX_ROWS


class CacheView:
    """The content of a layer after one `update`, for the attention function: packed, or as tensors.

    stores: the keys and the values; length: positions in use, the new ones included."""

    def __init__(self, layer: DfqCacheLayer, stores: tuple[PackedStates, PackedStates], length: int) -> None:
        self.layer, self.stores, self.length = layer, stores, length

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, length, D] in the model's dtype, as the quantized cache holds them."""
        states = [store.read(self.length, self.layer.dtype) for store in self.stores]
        if self.layer.sink_states.tensors is not None:
            self.layer.sink_states.restore(states, self.length)
        return states[0].permute(1, 2, 0, 3), states[1].permute(1, 2, 0, 3)

    def attend(self, query: Tensor, scaling: float, first: Tensor | None, tree: Tensor | None) -> Tensor:
        """Attention of query [B, heads, S, D], not yet rotated, at the last S positions -> [B, S, heads, D].

        first, tree: what each row sees (dfrot.compat.masks.VisiblePositions)."""
        layer, (keys, values) = self.layer, self.stores
        saved = layer.sink_states
        sinks = (*saved.tensors, saved.starts) if saved.tensors is not None else (None, None, None)
        shape = (self.length, values.head_dim, layer.spec.bits, scaling)
        r3 = layer.spec.r3_operands(query.device)
        out: Tensor = torch.ops.dfq.kv_attention(
            query.transpose(1, 2), *keys.buffers(), *values.buffers(), *shape, *r3, first, tree, *sinks
        )
        return out


class DfqCacheLayer:
    """One layer's keys and values.

    Args:
        spec: how they are stored.
        sinks: which positions stay exact; shared by all layers and linears of a model.
        persistent: False for a call without cache, which quantizes its keys and values but stores nothing.
        as_view: `update` may return a `CacheView`, which the attention function `dfq` understands.
        shift: float32 [kv heads, head_dim], subtracted from every key behind R3 (dfrot/quant/key_shift.py), or None.
    """

    # transformers asks for these
    is_croppable, is_sliding, is_compileable, supports_early_init = True, False, False, True

    def __init__(
        self,
        spec: KVSpec,
        sinks: Sinks,
        persistent: bool = True,
        as_view: bool = False,
        shift: Tensor | None = None,
    ) -> None:
        self.spec, self.sinks, self.persistent, self.as_view, self.shift = spec, sinks, persistent, as_view, shift
        self._clear()

    def _clear(self) -> None:
        self.length = 0  # positions in use
        self.is_initialized = False
        self.keys = self.values = None  # of transformers' own layers; a packed layer has no such tensors
        self.packed: tuple[PackedStates, PackedStates] | None = None
        self.sink_states = SinkStates(self.sinks)

    def _new_stores(self, head_dims: tuple[int, int]) -> tuple[PackedStates, PackedStates]:
        return PackedStates(self.spec, head_dims[0]), PackedStates(self.spec, head_dims[1])

    def _initialize(self, dtype: torch.dtype, device: torch.device, head_dims: tuple[int, int]) -> None:
        self.dtype, self.device = dtype, device
        self.packed = self._new_stores(head_dims)
        self.is_initialized = True

    def fresh(self) -> DfqCacheLayer:
        """An empty layer of the same kind, for another sequence."""
        return DfqCacheLayer(self.spec, self.sinks, self.persistent, self.as_view, self.shift)

    def stored(self, begin: int, end: int) -> list[Tensor]:
        """What is stored of the positions begin .. end - 1, as views of the buffers, codes and scales as they are; with
        position 0 also the exact sinks. Another layer of the kind takes it by copying."""
        assert self.packed is not None
        parts = [part[begin:end] for store in self.packed for part in store.parts]
        return [*parts, *(self.sink_states.tensors or ())] if begin == 0 else parts

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Create empty stores for keys and values like these [B, H, S, D]."""
        head_dims = (key_states.shape[-1], value_states.shape[-1])
        self._initialize(key_states.dtype, key_states.device, head_dims)

    def initialize(self, dtype: torch.dtype, device: torch.device, head_dim: int) -> None:
        """`lazy_initialization` for a caller that writes the stores itself and has no keys yet."""
        self._initialize(dtype, device, (head_dim, head_dim))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Append new keys and values [B, H, S, D]. Returns all of them [B, H, length, D], as the quantized cache holds
        them, or (`as_view`, at most MAX_ROWS new positions) one CacheView twice."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.packed is not None
        batch, heads, new, _ = key_states.shape
        begin, self.length = self.length, self.length + new
        r3 = self.spec.r3_operands(key_states.device)
        if self.sinks.count:
            self.sink_states.save(key_states, value_states, begin, self.dtype, r3, self.shift)
        stores = self.packed if self.persistent else self._new_stores((key_states.shape[-1], value_states.shape[-1]))
        for store in stores:
            store.reserve(self.length, begin, batch, heads, key_states.device)
        buffers = (*stores[0].buffers(), *stores[1].buffers())
        rows = key_states.transpose(1, 2), value_states.transpose(1, 2)
        torch.ops.dfq.kv_append(*rows, *buffers, begin, self.spec.bits, self.spec.clip, *r3, self.shift)
        view = CacheView(self, stores, self.length)
        return (view, view) if self.as_view and new <= MAX_ROWS else view.tensors()

    # --- transformers' cache interface -------------------------------------------------------------------------

    def get_seq_length(self) -> int:
        """Positions in use."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Positions that the mask of a call with `query_length` new ones covers, and the first of them."""
        return self.length + int(query_length), 0

    def get_max_length(self) -> int:
        """-1: the layer grows without limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """The older name of `get_max_length`."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self._clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Negative: forget that many of the last positions. Positive, in older transformers: keep that many."""
        if tokens_to_remove < 0:
            self.length = max(0, self.length + tokens_to_remove)
        elif tokens_to_remove > 0:
            self.length = min(self.length, tokens_to_remove)

    def _select(self, index: Tensor) -> None:
        """Keep, or repeat, sequences of the batch: index int64 [new batch]."""
        if self.length == 0 or self.packed is None:
            return
        for store in self.packed:
            store.select(index, self.length)
        self.sink_states.select(index.to(self.device))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence i become what sequence beam_idx[i] was; int64 [B], for beam search."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences of the batch that `indices` names: int64 [n] or bool [B]."""
        self._select(torch.arange(self._batch(), device=indices.device)[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch `repeats` times, copies side by side."""
        self._select(torch.arange(self._batch()).repeat_interleave(repeats))

    def _batch(self) -> int:
        return self.packed[0].parts[0].shape[1] if self.packed and self.packed[0].parts else 0

    def offload(self) -> None:
        """Move the packed states to the CPU."""
        self._move("cpu")

    def prefetch(self) -> None:
        """Move the packed states back to the layer's device."""
        if self.is_initialized:
            self._move(self.device)

    def _move(self, device: torch.device | str) -> None:
        for store in self.packed or ():
            store.to(device)

    @property
    def nbytes(self) -> int:
        """Bytes held for the positions in use, without the room to grow."""
        if self.packed is None:
            return 0
        parts = [part[: self.length] for store in self.packed for part in store.parts]
        return sum(part.numel() * part.element_size() for part in [*parts, *(self.sink_states.tensors or ())])
