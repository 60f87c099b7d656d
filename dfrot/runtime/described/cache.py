"""The cache of a described model: layers of keys and values, by the methods of transformers' caches that dfq calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

GROWTH = 256  # positions by which the buffers of a layer grow


class DenseCacheLayer:
    """Keys and values [B, heads, length, D] of one layer in the model's dtype, in buffers that grow."""

    is_sliding = False

    def __init__(self) -> None:
        self.length = 0
        self._buffers: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values [B, heads, S, D]; returns all of them."""
        begin, self.length = self.length, self.length + keys.shape[2]
        if not self._buffers:
            self._buffers = [
                torch.empty_like(states, memory_format=torch.contiguous_format) for states in (keys, values)
            ]
        for buffer, states in zip(self._room(begin, self.length), (keys, values)):
            buffer[:, :, begin : self.length] = states
        return self._buffers[0][:, :, : self.length], self._buffers[1][:, :, : self.length]

    def with_room(self, count: int) -> list[Tensor]:
        """The buffers [B, heads, capacity, D] of keys and values with room for `count` more positions, in a layer that
        has some. Who writes there adds to `length`."""
        return self._room(self.length, self.length + count)

    def _room(self, used: int, needed: int) -> list[Tensor]:
        if self._buffers[0].shape[2] < needed:
            shapes = [(*buffer.shape[:2], needed + GROWTH, buffer.shape[3]) for buffer in self._buffers]
            grown = [buffer.new_empty(shape) for buffer, shape in zip(self._buffers, shapes)]
            for old, larger in zip(self._buffers, grown):
                larger[:, :, :used] = old[:, :, :used]
            self._buffers = grown
        return self._buffers

    @property
    def batch(self) -> int:
        """Texts in the cache."""
        return len(self._buffers[0]) if self._buffers else 0

    def get_seq_length(self) -> int:
        """Positions in use."""
        return self.length


class DescribedCache:
    """The layers, made when they are first needed unless dfq put its packed ones in."""

    def __init__(self) -> None:
        self.layers: list[Any] = []

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Any, Any]:
        """Append new keys and values [B, heads, S, D] of a layer; returns what its attention reads."""
        while len(self.layers) <= layer:
            self.layers.append(DenseCacheLayer())
        return self.layers[layer].update(keys, values)  # type: ignore[no-any-return]

    def get_seq_length(self) -> int:
        """Positions in use."""
        return int(self.layers[0].get_seq_length()) if self.layers else 0
