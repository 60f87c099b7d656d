"""What a loaded dfq model does on every call: which cache it uses, which positions stay in full precision.

One hook runs before the base model's forward and one after it. The cache object that the caller (or `generate`) passes
is kept; only its empty layers are replaced by ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.compat.attention import implementation
from dfrot.compat.cache import is_dynamic, new_cache, replace_layers
from dfrot.errors import UnsupportedError
from dfrot.quant.sinks import Sinks
from dfrot.runtime.attention import NAME as ATTENTION
from dfrot.runtime.attention import register_attention
from dfrot.runtime.described.cache import DescribedCache
from dfrot.runtime.kv_cache import DfqCacheLayer
from dfrot.runtime.packed_states import KVSpec

_POSITIONAL = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache")


def _left_padding(mask: Any, batch: int) -> Tensor | None:
    """Padded positions before each sequence, int64 [B]; None when there are none."""
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != batch:
        return None
    starts = mask.to(torch.uint8).argmax(-1)
    return starts if bool(starts.any()) else None


class ForwardHooks:
    """State and hooks of one loaded model.

    Args:
        kv: how keys and values are stored; None: in 16 bits, by transformers' own cache.
        sink_tokens: leading positions that stay exact.
        n_layers: blocks of the model, each with one cache layer.
        key_shifts: names of the layers' key shifts, buffers of the base model; empty: keys are not shifted.
    """

    def __init__(self, kv: KVSpec | None, sink_tokens: int, n_layers: int, key_shifts: tuple[str, ...] = ()) -> None:
        self.kv = kv
        self.n_layers, self.key_shifts = n_layers, key_shifts
        self.sinks = Sinks(sink_tokens)
        self._transient = False  # the running call has a cache that its caller did not ask for

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A model that was pickled may arrive in a process where no dfq model was loaded yet."""
        self.__dict__.update(state)
        register_attention()

    def attach(self, base: nn.Module) -> None:
        """Register the hooks on the base model, the part below the head."""
        if self.kv is None and not self.sinks.count:
            return
        base.register_forward_pre_hook(self._before, with_kwargs=True)
        base.register_forward_hook(self._after, with_kwargs=True, always_call=True)

    def _before(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], Any]:
        kwargs = {**dict(zip(_POSITIONAL, args)), **kwargs}
        cache = kwargs.get("past_key_values")
        if self.kv is not None:
            cache = kwargs["past_key_values"] = self._cache(base, cache, kwargs)
        if self.sinks.count:
            batch, new = _input_shape(kwargs)
            past = cache.get_seq_length() if cache is not None else 0
            self.sinks.begin(batch, new, past, self._starts(cache, past, kwargs.get("attention_mask"), batch))
        return (), kwargs

    def _starts(self, cache: Any, past: int, mask: Any, batch: int) -> Tensor | None:
        """Padded positions before each sequence, int64 [B], or None. A packed cache remembers them from its first
        call, so that a step does not search the mask."""
        if past and self.kv is not None and cache.layers[0].sink_states.tensors is not None:
            starts: Tensor | None = cache.layers[0].sink_states.starts
            return starts
        return _left_padding(mask, batch)

    def _after(self, base: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        self.sinks.end()
        if self._transient:
            self._transient = False
            if output is not None:
                output.past_key_values = None
        return output

    def _cache(self, base: nn.Module, cache: Any, kwargs: dict[str, Any]) -> Any:
        """The caller's cache with our layers, or a new one. Raises UnsupportedError for a cache that cannot take
        them."""
        assert self.kv is not None
        config: Any = base.config
        if implementation(config) != ATTENTION:
            raise UnsupportedError(
                f"attention implementation {implementation(config)!r} cannot read the quantized KV cache; "
                f"keep {ATTENTION!r}, which was set while loading"
            )
        if cache is None:
            use_cache = kwargs.get("use_cache")
            self._transient = not (config.use_cache if use_cache is None else use_cache)
            if self._transient and kwargs.get("position_ids") is not None:
                _refuse_packed_sequences(kwargs["position_ids"])
            cache = getattr(base, "empty_cache", new_cache)()
        elif not (isinstance(cache, DescribedCache) or is_dynamic(cache)):
            raise UnsupportedError(
                f"{type(cache).__name__}: a dfq model keeps keys and values in its own {self.kv.bits}-bit layers; "
                "pass a DynamicCache or none"
            )
        layers = cache.layers
        if layers and type(layers[0]) is DfqCacheLayer:
            alike = layers[0].spec == self.kv and (layers[0].shift is None) == (not self.key_shifts)
            if not alike or len(layers) != self.n_layers:
                raise UnsupportedError("past_key_values belongs to another model; start with an empty DynamicCache")
            return cache
        if any(layer.get_seq_length() for layer in layers):
            raise UnsupportedError(
                "past_key_values already holds unquantized keys and values; start with an empty DynamicCache"
            )
        shifts: list[Tensor | None] = [base.get_buffer(name).float() for name in self.key_shifts]
        shifts = shifts or [None] * self.n_layers
        persistent = not self._transient
        replace_layers(
            cache, [DfqCacheLayer(self.kv, self.sinks, persistent, as_view=True, shift=shift) for shift in shifts]
        )
        return cache


def _input_shape(kwargs: dict[str, Any]) -> tuple[int, int]:
    """Sequences and new positions of a call."""
    inputs = kwargs.get("input_ids")
    inputs = kwargs["inputs_embeds"] if inputs is None else inputs
    return int(inputs.shape[0]), int(inputs.shape[1])


def _refuse_packed_sequences(positions: Tensor) -> None:
    """Several sequences in one row: transformers separates them only when there is no cache, and here is one."""
    if bool((positions.diff(dim=-1) != 1).any()):
        raise UnsupportedError("position_ids with several sequences in one row need an unquantized KV cache")
