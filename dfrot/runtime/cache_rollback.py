"""Removing rows from a cache: after verification only the accepted rows of the verified block stay, as stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.errors import UnsupportedError
from dfrot.runtime.kv_cache import DfqCacheLayer


def keep_accepted_path(cache: Any, past: int, rows: int, path: list[int]) -> None:
    """Of the `rows` newest positions of every layer keep those of `path` (rising indices into them), moved together
    behind position `past`. Packed rows move as bytes, so nothing is quantized twice.

    Raises UnsupportedError for layers whose rows cannot be moved."""
    is_chain = path == list(range(len(path)))
    index = None if is_chain else torch.tensor(path) + past
    for layer in cache.layers:
        if index is not None:
            _move(layer, past, index)
        remove = rows - len(path)
        if remove:
            layer.crop(-remove)


def _move(layer: Any, past: int, index: Tensor) -> None:
    """Copy positions `index` int64 [n] of one layer to past, past + 1, ..."""
    if isinstance(layer, DfqCacheLayer):
        if layer.sink_states.tensors is not None and past < layer.sinks.count:
            raise UnsupportedError(
                "a draft tree cannot branch among the sink tokens; give a longer prompt, or draft a `chain`",
                field="chain",
            )
        assert layer.packed is not None
        for store in layer.packed:
            for part in store.parts:
                part[past : past + len(index)] = part.index_select(0, index.to(part.device))
        return
    if getattr(layer, "is_sliding", False) or not isinstance(layer.keys, Tensor):
        raise UnsupportedError(f"{type(layer).__name__}: rows of this cache cannot be selected; use a DynamicCache()")
    for states in (layer.keys, layer.values):
        states[:, :, past : past + len(index)] = states.index_select(2, index.to(states.device))
