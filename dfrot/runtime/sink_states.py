"""Keys and values of the sink tokens, which a packed cache layer keeps in the model's dtype beside the packed ones."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.quant.sinks import Sinks


class SinkStates:
    """The sinks of one cache layer.

    tensors: keys and values [N, B, H, D], keys rotated by R3 and shifted like the others; None before the first call.
    starts: padded positions before each sequence, int64 [B], None without left padding: sink i of sequence b is cache
    position starts[b] + i."""

    def __init__(self, sinks: Sinks) -> None:
        self.sinks = sinks
        self.tensors: tuple[Tensor, Tensor] | None = None
        self.starts: Tensor | None = None
        self._end = 0  # the first position that is no sink in any sequence

    def _slots(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Cache positions [N, B] of the sinks behind left padding, and the matching batch indices."""
        count, batch = self.sinks.count, len(starts)
        slots = torch.arange(count, device=starts.device)[:, None] + starts[None, :]
        return slots, torch.arange(batch, device=starts.device)[None, :].expand(count, batch)

    def allocate(
        self, keys: tuple[int, int, int], values: tuple[int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Make room for the sinks of a new cache. keys, values: batch, heads and head_dim of each."""
        self.starts = None if self.sinks.starts is None else self.sinks.starts.to(device)
        self._end = self.sinks.count + (0 if self.starts is None else int(self.starts.max()))
        self.tensors = tuple(  # type: ignore[assignment]
            torch.zeros((self.sinks.count, *shape), dtype=dtype, device=device) for shape in (keys, values)
        )

    def save(
        self,
        keys: Tensor,
        values: Tensor,
        begin: int,
        dtype: torch.dtype,
        r3: tuple[Tensor | None, int],
        shift: Tensor | None = None,
    ) -> None:
        """Copy what sinks there are among new keys and values [B, H, S, D] at positions begin .. begin + S. r3: base
        and block, applied to the keys; shift: float32 [H, D], then subtracted from them; dtype: of the keys that are
        kept."""
        count, length = self.sinks.count, begin + keys.shape[2]
        if self.tensors is None:
            of_keys, of_values = ((*new.shape[:2], new.shape[3]) for new in (keys, values))
            self.allocate(of_keys, of_values, dtype, keys.device)
        elif begin >= self._end:
            return
        assert self.tensors is not None
        if r3[0] is not None:
            keys = torch.ops.dfq.hadamard(keys.float(), *r3)
        if shift is not None:
            keys = keys.float() - shift[:, None]
        keys, values = keys.permute(2, 0, 1, 3), values.permute(2, 0, 1, 3)
        if self.starts is None:
            end = min(count, length)
            if begin < end:
                for saved, new in zip(self.tensors, (keys, values)):
                    saved[begin:end] = new[: end - begin]
            return
        slots, batch = self._slots(self.starts)
        is_new = (slots >= begin) & (slots < length)
        for saved, new in zip(self.tensors, (keys, values)):
            saved[is_new] = new[slots[is_new] - begin, batch[is_new]].to(saved.dtype)

    def restore(self, states: list[Tensor], length: int) -> None:
        """Overwrite the sinks among dequantized keys and values [length, B, H, D] with their exact states."""
        assert self.tensors is not None
        if self.starts is None:
            end = min(self.sinks.count, length)
            for saved, full in zip(self.tensors, states):
                full[:end] = saved[:end]
            return
        slots, batch = self._slots(self.starts)
        valid = slots < length
        for saved, full in zip(self.tensors, states):
            full[slots[valid], batch[valid]] = saved[valid]

    def select(self, index: Tensor) -> None:
        """Keep, or repeat, sequences of the batch: index int64 [new batch]."""
        if self.tensors is not None:
            keys, values = self.tensors
            self.tensors = (keys.index_select(1, index), values.index_select(1, index))
        if self.starts is not None:
            self.starts = self.starts.index_select(0, index)
