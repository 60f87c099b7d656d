"""What a loaded dfq model does on every call: which cache it uses, which positions stay in full precision.

One hook before the base model's forward and one after it. The cache that the caller (or `generate`) passes is
kept as an object; only its empty layers are exchanged for ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dfrot.errors import UnsupportedError
from dfrot.quant.sinks import Sinks
from dfrot.runtime.attention import NAME as ATTENTION
from dfrot.runtime.kv_cache import DfqCacheLayer, KVSpec

_POSITIONAL = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache")


def _left_padding(mask: Any, batch: int) -> Tensor | None:
    """Padded positions before each sequence, int64 [B]; None when there are none."""
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != batch:
        return None
    starts = mask.to(torch.uint8).argmax(-1)
    return starts if bool(starts.any()) else None


class ForwardHooks:
    """State and hooks of one loaded model. kv: None when keys and values stay in 16 bits."""

    def __init__(self, kv: KVSpec | None, sink_tokens: int, n_layers: int) -> None:
        self.kv = kv
        self.n_layers = n_layers
        self.sinks = Sinks(sink_tokens)
        self._transient = False

    def attach(self, base: nn.Module) -> None:
        """Register the hooks on the base model (the part below the head)."""
        if self.kv is None and not self.sinks.count:
            return
        base.register_forward_pre_hook(self._before, with_kwargs=True)
        base.register_forward_hook(self._after, with_kwargs=True, always_call=True)

    def _before(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], Any]:
        kwargs = {**dict(zip(_POSITIONAL, args)), **kwargs}
        past = kwargs.get("past_key_values")
        if self.kv is not None:
            past = kwargs["past_key_values"] = self._cache(base, past, kwargs)
        if self.sinks.count:
            shape = _shape(kwargs)
            length = past.get_seq_length() if past is not None else 0
            self.sinks.begin(shape[0], shape[1], length, _left_padding(kwargs.get("attention_mask"), shape[0]))
        return (), kwargs

    def _after(self, base: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        self.sinks.end()
        if self._transient:
            self._transient = False
            if output is not None:
                output.past_key_values = None
        return output

    def _cache(self, base: nn.Module, past: Any, kwargs: dict[str, Any]) -> Any:
        """The caller's cache with our layers, or a fresh one."""
        from transformers import DynamicCache

        assert self.kv is not None
        config: Any = base.config
        if config._attn_implementation != ATTENTION:
            raise UnsupportedError(
                f"attention implementation {config._attn_implementation!r} cannot read the quantized KV cache; "
                f"keep {ATTENTION!r}, which was set while loading"
            )
        if past is None:
            use_cache = kwargs.get("use_cache")
            self._transient = not (config.use_cache if use_cache is None else use_cache)
            if self._transient and kwargs.get("position_ids") is not None:
                _refuse_packed(kwargs["position_ids"])
            past = DynamicCache()
        elif past.__class__ is not DynamicCache:
            raise UnsupportedError(
                f"{type(past).__name__}: a dfq model keeps keys and values in its own {self.kv.bits}-bit layers; "
                "pass a DynamicCache or none"
            )
        layers = past.layers
        if layers and type(layers[0]) is DfqCacheLayer:
            if layers[0].spec != self.kv or len(layers) != self.n_layers:
                raise UnsupportedError("past_key_values belongs to another model; start with an empty DynamicCache")
            return past
        if any(layer.get_seq_length() for layer in layers):
            raise UnsupportedError(
                "past_key_values already holds unquantized keys and values; start with an empty DynamicCache"
            )
        past.layers = [
            DfqCacheLayer(self.kv, self.sinks, keep=not self._transient, views=True) for _ in range(self.n_layers)
        ]
        past.layer_class_to_replicate = None
        return past


def _shape(kwargs: dict[str, Any]) -> tuple[int, int]:
    given = kwargs.get("input_ids")
    given = kwargs["inputs_embeds"] if given is None else given
    return int(given.shape[0]), int(given.shape[1])


def _refuse_packed(positions: Tensor) -> None:
    """Several sequences in one row are told apart by transformers only when there is no cache; here is one."""
    if bool((positions.diff(dim=-1) != 1).any()):
        raise UnsupportedError("position_ids with several sequences in one row need an unquantized KV cache")
