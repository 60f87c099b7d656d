"""transformers' cache of keys and values: making one, and exchanging the layers of a cache object."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def new_cache() -> Any:
    """An empty cache whose layers keep every position, sliding or not. A dfq model puts its packed layers in."""
    from transformers import DynamicCache

    return DynamicCache()


def is_dynamic(cache: Any) -> bool:
    """Whether `cache` is a plain DynamicCache, whose layers may be exchanged; no subclass and no other kind."""
    module = sys.modules.get("transformers.cache_utils")  # where there is such a cache, its module was imported
    return module is not None and cache.__class__ is module.DynamicCache


def replace_layers(cache: Any, layers: Sequence[Any]) -> None:
    """Let a cache hold exactly these layers, and create no others on demand.

    A cache of transformers asks its layers by name, and whether they count as its own (`isinstance`): so their classes
    are registered as such."""
    if (module := sys.modules.get("transformers.cache_utils")) is not None:
        for layer in layers:
            module.CacheLayerMixin.register(type(layer))
    cache.layers = list(layers)
    cache.layer_class_to_replicate = None
