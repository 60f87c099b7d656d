"""transformers' cache of keys and values: the base class of a layer, and exchanging the layers of a cache object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def new_cache() -> Any:
    """An empty cache whose layers keep every position, sliding or not. A dfq model puts its packed layers in."""
    return DynamicCache()


def is_dynamic(cache: Any) -> bool:
    """Whether `cache` is a plain DynamicCache, whose layers may be exchanged; no subclass and no other kind."""
    return cache.__class__ is DynamicCache


def replace_layers(cache: Any, layers: Sequence[Any]) -> None:
    """Let a DynamicCache hold exactly these layers, and create no others on demand."""
    cache.layers = list(layers)
    cache.layer_class_to_replicate = None


__all__ = ["DynamicLayer", "is_dynamic", "new_cache", "replace_layers"]
