"""Generation of a loaded model on the native decoder (dfrot_kernels/whole_blocks), where the model and the call fit it.

A few positions (decoding, checking drafted tokens) are one native call; a prompt is two calls a block around PyTorch's
attention. Whatever does not fit is computed by transformers' modules, op by op: the same numbers, later. Which of the
two served, and why not the native one, is counted in `model.dfq_native.report()`. Everything is derived from the
architecture description; the modules only lend their tensors.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch
from dfrot.quant.sinks import Sinks
from dfrot.runtime import attention
from dfrot.runtime.kv_cache import CacheView, DfqCacheLayer, KVSpec
from dfrot.runtime.native_operands import NotServable, attention_of, build_decoder, module_of
from dfrot_kernels import native
from dfrot_kernels.ops.kv_attention.reference import MAX_ROWS
from dfrot_kernels.whole_blocks.decoder import LINES, Decoder

_KNOWN = {"input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache"}
_IGNORED = {"cache_position", "return_dict", "logits_to_keep"}  # change nothing below the head
CHUNK = 512  # positions by which the table of angles grows


class NativeDecoder:
    """The native path of one model. `unfit`: why the model cannot take it at all, or None."""

    def __init__(self, arch: BoundArch, kv: KVSpec | None, sinks: Sinks) -> None:
        self.arch, self.kv, self.sinks = arch, kv, sinks
        self._forget()

    def _forget(self) -> None:
        self.decoder: Decoder | None = None
        self.unfit: str | None = None
        self.steps = 0
        self.fallbacks: dict[str, int] = {}
        self._built: tuple[Any, ...] = ()
        self._hooks: list[dict[Any, Any]] = []
        self._angles: tuple[Tensor, Tensor] | None = None
        self._table: tuple[list[Any], Tensor] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeDecoder:
        """A copied model builds its own tables."""
        return NativeDecoder(self.arch, self.kv, self.sinks)

    def report(self) -> dict[str, Any]:
        """steps: calls served natively. fallbacks: reason -> calls served op by op. unfit: why never, or None."""
        return {"steps": self.steps, "fallbacks": dict(self.fallbacks), "unfit": self.unfit}

    def serve(self, base: Any, kwargs: dict[str, Any]) -> Any:
        """The base model's output, or None: the modules must compute it."""
        try:
            out = self._step(base, kwargs)
        except NotServable as reason:
            self.fallbacks[str(reason)] = self.fallbacks.get(str(reason), 0) + 1
            return None
        self.steps += 1
        return out

    def serve_tree(self, base: Any, tokens: list[int], parents: list[int], cache: Any) -> Tensor | None:
        """Features [n, d] of a tree of at most LINES tokens behind what `cache` holds, in one call; parents come before
        children, -1 is no parent. Node i is then at position past + i of the cache. None: the modules must compute
        it."""
        try:
            call = {"input_ids": torch.tensor([tokens]), "past_key_values": cache, "use_cache": True}
            layers: list[DfqCacheLayer] = self._checked(base, call).layers
            hidden = base.embed_tokens(call["input_ids"])
            decoder = self._ready(base, hidden)
        except NotServable as reason:
            self.fallbacks[str(reason)] = self.fallbacks.get(str(reason), 0) + 1
            return None
        begin, depths = layers[0].length, list[int]()
        for parent in parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        angles = self._turned(base, hidden, begin, max(depths) + 1)
        cos, sin = (angle[torch.tensor(depths)] for angle in angles)
        table = self._caches(decoder, layers, begin + len(tokens), 1, hidden)
        out = decoder.run_tree(hidden, table, cos, sin, begin, torch.tensor(parents))
        for layer in layers:
            layer.length = begin + len(tokens)
        self.steps += 1
        return out[0]

    def _step(self, base: Any, kwargs: dict[str, Any]) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        cache = self._checked(base, kwargs)
        layers: list[DfqCacheLayer] = cache.layers
        hidden = kwargs.get("inputs_embeds")
        if hidden is None:
            hidden = base.embed_tokens(kwargs["input_ids"])
        batch, rows, _ = hidden.shape
        begin = layers[0].length
        decoder = self._ready(base, hidden)
        cos, sin = self._turned(base, hidden, begin, rows)
        table = self._caches(decoder, layers, begin + rows, batch, hidden)
        if batch * rows <= LINES and not 0 < decoder.shape.window < rows:
            out = decoder.run(hidden, table, cos, sin, begin)
            for layer in layers:
                layer.length = begin + rows
        else:
            out = self._prompt(base, layers, table, hidden, cos, sin)
        return BaseModelOutputWithPast(last_hidden_state=out, past_key_values=cache)

    def _prompt(
        self, base: Any, layers: list[DfqCacheLayer], table: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """Many positions: block by block around the attention that the modules would use."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        decoder = self.decoder
        assert decoder is not None
        hidden = hidden.clone(memory_format=torch.contiguous_format)
        rows, begin = hidden.shape[1], layers[0].length
        few = rows <= MAX_ROWS
        mask = None if few else _mask(rows, begin, decoder.shape.window)
        seen = _seen(hidden.shape[0], rows, begin, decoder.shape.window)
        for number, layer in enumerate(layers):
            assert layer.packed is not None
            query = decoder.before(number, hidden, table, cos, sin, begin, rotate=not few)
            layer.length = begin + rows
            view = CacheView(layer, layer.packed, layer.length)
            query = query.transpose(1, 2)
            if few:
                mixed = view.attend(query, decoder.shape.scaling, *seen)
            else:
                module = attention_of(base, self.arch, number)
                mixed, _ = sdpa_attention_forward(module, query, *view.tensors(), mask, scaling=decoder.shape.scaling)
            decoder.after(number, hidden, mixed)
        decoder.finish(hidden)
        return hidden

    # --- does this call fit? -----------------------------------------------------------------------------------

    def _checked(self, base: Any, kwargs: dict[str, Any]) -> Any:
        """The cache of a call that fits; raises Unfit with the reason otherwise. Cheap: it runs on every step."""
        if self.unfit:
            raise NotServable(self.unfit)
        given = kwargs.get("input_ids")
        given = kwargs.get("inputs_embeds") if given is None else given
        if given is None:
            raise NotServable("neither tokens nor embeddings")
        cache = kwargs.get("past_key_values")
        layers = cache.layers if cache is not None else []
        if not layers or type(layers[0]) is not DfqCacheLayer or not layers[0].keep:
            raise NotServable("no cache (a call that scores a text)")
        if not kwargs.get("use_cache") and not layers[0].length:
            raise NotServable("a cache that nobody asked for (a call that scores a text)")
        for name, value in kwargs.items():
            if name not in _KNOWN and name not in _IGNORED and value is not None and value is not False:
                raise NotServable(f"argument {name}")
        if base.config.output_hidden_states or getattr(base.config, "output_attentions", False):
            raise NotServable("hidden states or attentions are wanted")
        if torch.is_grad_enabled() and given.requires_grad:
            raise NotServable("a gradient is wanted")
        if self._hooks and any(self._hooks):
            raise NotServable("hooks on the modules")
        if not attention.unchanged():
            raise NotServable("attention is being watched")
        _check_positions(kwargs, given.shape[1], layers[0].length)
        if self.sinks.rows is not None or layers[0].starts is not None or layers[0].length < self.sinks.count:
            raise NotServable("sinks among the new positions")
        return cache

    def _ready(self, base: Any, hidden: Tensor) -> Decoder:
        """The decoder for the model as it is now: `model.to(...)` makes another."""
        weight = module_of(base, self.arch.spec.final_norm.name).weight
        first: Any = module_of(base, self.arch.full(0, self.arch.spec.linears[0].name))
        tiles = getattr(first, "prepared", None)  # made anew by `to`, like the norm's weight
        state = (weight.data_ptr(), weight.dtype, hidden.dtype, str(hidden.device), id(tiles))
        if self.decoder is None or state != self._built:
            try:
                self.decoder = build_decoder(base, self.arch, self.kv, self.sinks.count, hidden)
            except NotServable as reason:
                self.unfit = str(reason)
                raise
            self._built, self._angles, self._table = state, None, None
            self._hooks = _hooks(base)
            if any(self._hooks):
                raise NotServable("hooks on the modules")
        return self.decoder

    # --- operands of a step ------------------------------------------------------------------------------------

    def _turned(self, base: Any, hidden: Tensor, begin: int, rows: int) -> tuple[Tensor, Tensor]:
        """cos and sin [rows, head_dim] of the positions begin .. begin + rows, as the model's own module makes them."""
        end = begin + rows
        if self._angles is None or self._angles[0].shape[0] < end:
            positions = torch.arange((end // CHUNK + 1) * CHUNK)[None]
            cos, sin = base.rotary_emb(hidden[:1, :1], positions)
            self._angles = (cos[0].float().contiguous(), sin[0].float().contiguous())
        return self._angles[0][begin:end], self._angles[1][begin:end]

    def _caches(self, decoder: Decoder, layers: list[DfqCacheLayer], needed: int, batch: int, hidden: Tensor) -> Tensor:
        """The table of the cache, made anew only when a buffer was."""
        state: list[Any] = []
        for layer in layers:
            if layer.packed is None:
                layer.adopt(hidden.dtype, hidden.device, self.arch.head_dim)
            assert layer.packed is not None
            for store in layer.packed:
                if not store.parts or store.parts[0].shape[0] < needed:
                    store.reserve(needed, layer.length, batch, self.arch.n_kv_heads, hidden.device)
                state.append(store.parts)
        if self._table is None or not _same(self._table[0], state):
            stores = [(layer.packed[0].buffers(), layer.packed[1].buffers()) for layer in layers if layer.packed]
            exact = [layer.exact for layer in layers if layer.exact is not None]
            self._table = (state, decoder.caches(stores, exact if self.sinks.count else None))
        return self._table[1]


def _mask(rows: int, begin: int, window: int) -> Tensor | None:
    """Which of the positions 0 .. begin + rows the last `rows` see, bool [1, 1, rows, begin + rows]; None: plainly
    causal."""
    if begin == 0 and not 0 < window < rows:
        return None
    at = torch.arange(begin, begin + rows)[:, None]
    seen = torch.arange(begin + rows)[None, :]
    visible = (seen <= at) & (seen > at - window) if window else seen <= at
    return visible[None, None]


def _seen(batch: int, rows: int, begin: int, window: int) -> tuple[Tensor | None, Tensor | None]:
    """What each of the last `rows` sees, as `dfq::kv_attention` takes it: the first cached position, and which of the
    new ones."""
    if not 0 < window < begin + rows:
        return None, None
    first = (torch.arange(begin, begin + rows) + 1 - window).clamp(min=0, max=begin).expand(batch, -1).contiguous()
    new = torch.ones(rows, rows, dtype=torch.bool).tril()
    return first, new.triu(1 - window) if window < rows else None


def _same(before: list[Any], now: list[Any]) -> bool:
    """Whether both hold the same objects (lists of buffers, which are replaced and never changed)."""
    return len(before) == len(now) and all(a is b for a, b in zip(before, now))


def _check_positions(kwargs: dict[str, Any], rows: int, begin: int) -> None:
    """Only positions that follow one another, none of them padding or hidden by a mask."""
    positions = kwargs.get("position_ids")
    if positions is not None:
        expected = torch.arange(begin, begin + rows)
        if not bool((positions == expected).all()):
            raise NotServable("positions that do not follow one another (padding, trees)")
    mask = kwargs.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2 or not bool(mask.all())):
        raise NotServable("an attention mask that hides something")


def _hooks(base: nn.Module) -> list[dict[Any, Any]]:
    """The tables of hooks below `base`: while one of them holds a hook, the modules must run."""
    from torch.nn.modules import module as torch_module

    found: list[dict[Any, Any]] = [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
    for name, module in base.named_modules():
        if name:
            found += [module._forward_hooks, module._forward_pre_hooks]
    return found


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    out = self.dfq_native.serve(self, kwargs) if not args else None
    return type(self).forward(self, *args, **kwargs) if out is None else out


def attach(model: Any, base: Any, arch: BoundArch, kv: KVSpec | None, sinks: Sinks) -> None:
    """Let the forward of `base`, the part of `model` below its head, try the native path first."""
    decoder = NativeDecoder(arch, kv, sinks)
    if kv is None:
        decoder.unfit = "keys and values are kept in 16 bits"
    elif not native.active():
        decoder.unfit = f"no native library: {native.status()}"
    base.dfq_native = model.dfq_native = decoder
    if decoder.unfit is None:
        base.forward = MethodType(_forward, base)
