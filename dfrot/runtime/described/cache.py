"""The cache of a described model: layers of keys and values, by the methods of transformers' caches that dfq calls."""

from __future__ import annotations

from typing import Any

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
        if not self._buffers or self._buffers[0].shape[2] < self.length:
            capacity = self.length if begin == 0 else self.length + GROWTH
            grown = [states.new_empty((*states.shape[:2], capacity, states.shape[3])) for states in (keys, values)]
            for old, larger in zip(self._buffers, grown):
                larger[:, :, :begin] = old[:, :, :begin]
            self._buffers = grown
        for buffer, states in zip(self._buffers, (keys, values)):
            buffer[:, :, begin : self.length] = states
        return self._buffers[0][:, :, : self.length], self._buffers[1][:, :, : self.length]

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
