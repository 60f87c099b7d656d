"""A transformers cache layer that keeps keys and values packed: 2 to 8 bits, one scale per token and head.

Keys are rotated (R3) in float32, then quantized, so they are stored and returned in the rotated basis; the
attention function `dfq` rotates the queries alike. Memory is laid out [position, batch, head, ...]: the part in
use is one contiguous block, and appending a token writes in place. Sliding-window models keep every position and
rely on the mask.
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
    """Keys or values of one layer: codes uint8 [capacity, B, H, bytes], scale float16, zero uint8 [capacity, B, H]."""

    def __init__(self, spec: KVSpec, head_dim: int) -> None:
        self.spec, self.head_dim = spec, head_dim
        self.parts: list[Tensor] = []

    def encode(self, x: Tensor) -> list[Tensor]:
        """x [S, B, H, D] -> codes, scale and (asymmetric only) zero."""
        spec = self.spec
        codes, scale, zero = torch.ops.dfq.kv_quantize(x, spec.bits, spec.symmetric, spec.clip)
        return [codes, scale] if spec.symmetric else [codes, scale, zero]

    def decode(self, parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        """The inverse of `encode`, [S, B, H, D]."""
        zero = parts[2] if len(parts) == 3 else None
        out: Tensor = torch.ops.dfq.kv_dequantize(parts[0], parts[1], zero, self.head_dim, self.spec.bits, dtype)
        return out

    def append(self, x: Tensor, used: int) -> None:
        """Write positions used .. used + S."""
        new = self.encode(x)
        needed = used + x.shape[0]
        if not self.parts:
            self.parts = [part.new_empty(needed, *part.shape[1:]) for part in new]
        elif self.parts[0].shape[0] < needed:
            capacity = needed + max(MIN_GROWTH, needed // 4)
            grown = [part.new_empty(capacity, *part.shape[1:]) for part in self.parts]
            for old, larger in zip(self.parts, grown):
                larger[:used] = old[:used]
            self.parts = grown
        for part, fresh in zip(self.parts, new):
            part[used:needed] = fresh

    def read(self, used: int, dtype: torch.dtype) -> Tensor:
        """Positions 0 .. used as [used, B, H, D]."""
        return self.decode([part[:used] for part in self.parts], dtype)

    def select(self, index: Tensor, used: int) -> None:
        """Keep (or repeat) sequences of the batch."""
        self.parts = [part[:used].index_select(1, index.to(part.device)) for part in self.parts]

    def to(self, device: torch.device | str) -> None:
        self.parts = [part.to(device, non_blocking=True) for part in self.parts]


class DfqCacheLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values. keep: False for a call without cache, which quantizes but stores nothing."""

    is_croppable = True

    def __init__(self, spec: KVSpec, sinks: Sinks, keep: bool = True) -> None:
        super().__init__()
        self.spec, self.sinks, self.keep = spec, sinks, keep
        self._clear()

    def _clear(self) -> None:
        self.length = 0
        self.is_initialized = False
        self.keys = self.values = None
        self.packed: tuple[_Packed, _Packed] | None = None
        self.exact: tuple[Tensor, Tensor] | None = None  # sinks: [N, B, H, D] in the model's dtype
        self.starts: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.packed = (_Packed(self.spec, key_states.shape[-1]), _Packed(self.spec, value_states.shape[-1]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """New keys and values [B, H, S, D] in, all of them [B, H, length, D] out, as the quantized cache holds them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.packed is not None
        keys, values = self._rotated(key_states).permute(2, 0, 1, 3), value_states.permute(2, 0, 1, 3)
        begin, self.length = self.length, self.length + keys.shape[0]
        if self.sinks.count:
            self._keep_exact(keys, values, begin)
        out = []
        for store, new in zip(self.packed, (keys, values)):
            if self.keep:
                store.append(new.contiguous(), begin)
                out.append(store.read(self.length, self.dtype))
            else:
                out.append(store.decode(store.encode(new.contiguous()), self.dtype))
        if self.exact is not None:
            self._restore_exact(out)
        return out[0].permute(1, 2, 0, 3), out[1].permute(1, 2, 0, 3)

    def _rotated(self, keys: Tensor) -> Tensor:
        if self.spec.r3 is None:
            return keys
        base = _base(self.spec.r3, keys.device)
        return torch.ops.dfq.hadamard(keys.float(), base, self.spec.r3.block)  # type: ignore[no-any-return]

    # --- sinks -------------------------------------------------------------------------------------------------

    def _slots(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Cache positions [N, B] of the sinks behind left padding, and the matching batch indices."""
        count, batch = self.sinks.count, len(starts)
        slots = torch.arange(count, device=self.device)[:, None] + starts[None, :]
        return slots, torch.arange(batch, device=self.device)[None, :].expand(count, batch)

    def _keep_exact(self, keys: Tensor, values: Tensor, begin: int) -> None:
        """Copy the sinks among the new positions (begin .. length) aside."""
        count = self.sinks.count
        if self.exact is None:
            self.starts = None if self.sinks.starts is None else self.sinks.starts.to(self.device)
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
