"""Running a loaded model on the native decoder (dfrot_kernels/whole_blocks), where the model and the call fit it.

A few positions (decoding, verifying drafts) are one native call; a prompt is three calls per block. Whatever does not
fit is computed by transformers' modules, operator by operator: the same arithmetic, slower. RoPE and integer products
agree with theirs bit for bit; norms (the order of a sum) and SiLU (its exponential) differ in the last bit of some
values, 1e-7 of their size. That stays so until it moves a value over an edge of the quantizer's grid: then a code
differs by one, and logits by about as much as one rounding moves them. `model.dfq_native.report()` counts both, and the
reasons of the second. Everything is derived from the architecture description; the modules only lend their tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dfrot.arch import BoundArch
from dfrot.compat.forward import replace_forward
from dfrot.compat.outputs import base_model_output
from dfrot.quant.sinks import Sinks
from dfrot.runtime.attention import is_wrapped
from dfrot.runtime.kv_cache import CacheView, DfqCacheLayer
from dfrot.runtime.native_calls import (
    AngleTable,
    check_arguments,
    check_positions,
    hook_tables,
    input_of,
    kernel_mask,
    packed_cache,
)
from dfrot.runtime.native_operands import NotServable, build_decoder, module_of
from dfrot.runtime.packed_states import KVSpec
from dfrot_kernels import native
from dfrot_kernels.ops.kv_attention.reference import MAX_ROWS
from dfrot_kernels.whole_blocks.decoder import LINES, Decoder


class NativeDecoder:
    """The native path of one model.

    unfit: why the model cannot take it at all, or None. steps: calls that were served. fallbacks: reason -> calls that
    were not. decoder: built at the first call; exact: the same for sinks, whose activations stay in 16 bits."""

    def __init__(self, arch: BoundArch, kv: KVSpec | None, sinks: Sinks) -> None:
        self.arch, self.kv, self.sinks = arch, kv, sinks
        self.decoder: Decoder | None = None
        self.exact: Decoder | None = None
        self.unfit: str | None = None
        if kv is None:
            self.unfit = "keys and values are kept in 16 bits"
        elif not native.active():
            self.unfit = f"no native library: {native.status()}"
        self.steps = 0
        self.fallbacks: dict[str, int] = {}
        self._built_for: tuple[Any, ...] = ()  # the state of the model that `decoder` was built for
        self._linears: list[Any] = []  # of the blocks, when `decoder` was built: adapters replace them
        self._hook_tables: list[dict[Any, Any]] = []
        self._angles = AngleTable()
        self._cache_table: tuple[list[Any], Tensor] | None = None  # buffers, and the table of their addresses
        self._recorded: tuple[int, ...] = ()  # layers, counted from 1, whose outputs `states` receives
        self._own_hooks = 0  # hooks on layers that record the same where the modules compute
        self.states: list[Tensor] | None = None  # [batch, rows, hidden] of each recorded layer, of the last call

    def __reduce__(self) -> tuple[Any, ...]:
        """A model that is copied, or pickled and loaded in another process, builds its own tables."""
        return NativeDecoder, (self.arch, self.kv, self.sinks)

    def report(self) -> dict[str, Any]:
        """steps: calls served natively. fallbacks: reason -> calls served by the modules. unfit: why never, or None."""
        return {"steps": self.steps, "fallbacks": dict(self.fallbacks), "unfit": self.unfit}

    def record(self, layers: tuple[int, ...], hooks: int) -> None:
        """From now on keep the outputs of these layers (counted from 1) of every call in `states`. hooks: how many the
        caller has put on the modules for calls that they compute; others keep calls from being served."""
        self._recorded, self._own_hooks, self.states = layers, hooks, None

    def _foreign_hooks(self) -> bool:
        return bool(self._hook_tables) and sum(map(len, self._hook_tables)) > self._own_hooks

    def serve(self, base: Any, kwargs: dict[str, Any]) -> Any:
        """The output of the base model's forward(**kwargs), or None: the modules must compute it."""
        try:
            out = self._step(base, kwargs)
        except NotServable as reason:
            self._count_fallback(reason)
            return None
        self.steps += 1
        return out

    def serve_tree(self, base: Any, tokens: list[int], parents: list[int], cache: Any) -> Tensor | None:
        """Features [n, d] of a tree of at most LINES tokens behind what `cache` holds, in one call; parents come before
        children, -1 is no parent. Node i is then at position past + i of the cache. None: the modules must compute
        it."""
        try:
            call = {"input_ids": torch.tensor([tokens]), "past_key_values": cache, "use_cache": True}
            layers: list[DfqCacheLayer] = self._checked_cache(base, call).layers
            hidden = base.embed_tokens(call["input_ids"])
            decoder = self._current_decoder(base, hidden)
            if layers[0].length < self.sinks.count:
                raise NotServable("sinks among the nodes of a tree")
        except NotServable as reason:
            self._count_fallback(reason)
            return None
        begin, depths = layers[0].length, list[int]()
        for parent in parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        angles = self._rope_angles(base, hidden, begin, max(depths) + 1)
        cos, sin = (angle[torch.tensor(depths)] for angle in angles)
        table = self._caches(decoder, layers, begin + len(tokens), 1, hidden)
        states = self._empty_states(decoder, hidden)
        out = decoder.run_tree(hidden, table, cos, sin, begin, torch.tensor(parents), states)
        self._keep_states(states)
        for layer in layers:
            layer.length = begin + len(tokens)
        self.steps += 1
        return out[0]

    def make_room(self, base: Any, cache: Any, positions: int) -> Tensor:
        """Room for `positions` positions of one sequence in a packed cache. Returns its table for `serve_batch`, int64
        [layers, words], which holds while the cache grows no further. Raises NotServable where the model does not
        fit."""
        hidden = base.embed_tokens(torch.zeros(1, 1, dtype=torch.int64))
        return self._caches(self._current_decoder(base, hidden), cache.layers, positions, 1, hidden)

    def serve_batch(self, base: Any, tokens: list[int], caches: Sequence[Any], tables: Sequence[Tensor]) -> Tensor:
        """Features [n, d] of one token each of at most LINES sequences, appended to their caches, which have room and
        hold at least the sinks. tables: of `make_room`. Every row has the bits that a call of its sequence alone gives.

        Raises NotServable where the modules would have to compute."""
        self._checked_cache(
            base, {"input_ids": torch.tensor([tokens[:1]]), "past_key_values": caches[0], "use_cache": True}
        )
        hidden = base.embed_tokens(torch.tensor(tokens))
        decoder = self._current_decoder(base, hidden[None])
        lengths = [cache.layers[0].length for cache in caches]
        positions = torch.tensor(lengths)
        cos, sin = self._angles.until(max(lengths) + 1, base.rotary_emb, hidden[None, :1])
        out = decoder.run_batch(hidden, torch.stack(list(tables)), cos[positions], sin[positions], positions)
        for cache, length in zip(caches, lengths):
            for layer in cache.layers:
                layer.length = length + 1
        self.steps += 1
        return out

    def _count_fallback(self, reason: NotServable) -> None:
        self.states = None
        self.fallbacks[str(reason)] = self.fallbacks.get(str(reason), 0) + 1

    def _step(self, base: Any, kwargs: dict[str, Any]) -> Any:
        cache = self._checked_cache(base, kwargs)
        layers: list[DfqCacheLayer] = cache.layers
        hidden = kwargs.get("inputs_embeds")
        if hidden is None:
            hidden = base.embed_tokens(kwargs["input_ids"])
        batch, rows, _ = hidden.shape
        begin = layers[0].length
        decoder = self._current_decoder(base, hidden)
        angles = self._rope_angles(base, hidden, begin, rows)
        table = self._caches(decoder, layers, begin + rows, batch, hidden)
        sinks = min(max(self.sinks.count - begin, 0), rows)  # they come first, and depend on nothing behind them
        parts, states = list[Tensor](), list[list[Tensor]]()
        for part, run in ((slice(0, sinks), self.exact), (slice(sinks, rows), decoder)):
            if part.stop > part.start:
                assert run is not None
                cos, sin = (angle[part] for angle in angles)
                parts.append(self._rows(run, layers, table, hidden[:, part], (cos, sin)))
                states.append(self.states or [])
        out = parts[0]
        if len(parts) > 1:
            out = torch.cat(parts, 1)
            self.states = [torch.cat(layer, 1) for layer in zip(*states)] if self._recorded else None
        return getattr(base, "make_output", base_model_output)(out, cache)

    def _rows(
        self,
        decoder: Decoder,
        layers: list[DfqCacheLayer],
        table: Tensor,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Features of hidden [B, rows, d] behind what the cache holds, to which they are appended."""
        batch, rows, _ = hidden.shape
        begin = layers[0].length
        if batch * rows > LINES or 0 < decoder.shape.window < rows:
            return self._prompt(decoder, layers, table, hidden, angles)
        states = self._empty_states(decoder, hidden)
        out = decoder.run(hidden, table, *angles, begin, states)
        self._keep_states(states)
        for layer in layers:
            layer.length = begin + rows
        return out

    def _empty_states(self, decoder: Decoder, hidden: Tensor) -> Tensor | None:
        return decoder.empty_states(hidden) if self._recorded else None

    def _keep_states(self, states: Tensor | None) -> None:
        """states: of every layer."""
        self.states = None if states is None else [states[number - 1] for number in self._recorded]

    def _prompt(
        self,
        decoder: Decoder,
        layers: list[DfqCacheLayer],
        table: Tensor,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Many positions: block by block, two halves around the attention."""
        hidden = hidden.clone(memory_format=torch.contiguous_format)
        rows, begin = hidden.shape[1], layers[0].length
        is_short = rows <= MAX_ROWS
        visible = kernel_mask(hidden.shape[0], rows, begin, decoder.shape.window) if is_short else (None, None)
        outputs: dict[int, Tensor] = {}
        for number, layer in enumerate(layers):
            assert layer.packed is not None
            query = decoder.before(number, hidden, table, *angles, begin, rotate=not is_short)
            layer.length = begin + rows
            if is_short:  # exact to the last bit of 16-bit queries, and cut along the cache
                view = CacheView(layer, layer.packed, layer.length)
                mixed = view.attend(query.transpose(1, 2), decoder.shape.scaling, *visible)
            else:
                keys, values = (store.buffers() for store in layer.packed)
                mixed = decoder.attend(query, keys, values, layer.sink_states.tensors, layer.length)
            decoder.after(number, hidden, mixed)
            if number + 1 in self._recorded:
                outputs[number + 1] = hidden.clone()
        self.states = [outputs[number] for number in self._recorded] if self._recorded else None
        decoder.finish(hidden)
        return hidden

    def _checked_cache(self, base: Any, kwargs: dict[str, Any]) -> Any:
        """The cache of a call that fits; raises NotServable with the reason otherwise. Cheap: it runs on every step."""
        past = kwargs.get("past_key_values")
        begins = past is None or not past.get_seq_length()
        if begins and self._linears and self.unfit and self._current_linears(base) != self._linears:
            self.unfit = None
        if self.unfit:
            raise NotServable(self.unfit)
        inputs = input_of(kwargs)
        cache = packed_cache(kwargs)
        layer: DfqCacheLayer = cache.layers[0]
        if layer.length == 0 and self.decoder is not None and self._current_linears(base) != self._linears:
            self.decoder = None
        check_arguments(base.config, kwargs, inputs)
        if self._foreign_hooks():
            raise NotServable("hooks on the modules")
        if is_wrapped():
            raise NotServable("attention is being watched")
        check_positions(kwargs, inputs.shape[1], layer.length)
        if layer.sink_states.starts is not None or (self.sinks.starts is not None and self.sinks.rows is not None):
            raise NotServable("sinks behind padding")
        return cache

    def _current_decoder(self, base: Any, hidden: Tensor) -> Decoder:
        """The decoder for the model as it is now: after `model.to(...)` it is built again."""
        weight = module_of(base, self.arch.spec.final_norm.name).weight
        first: Any = module_of(base, self.arch.full(0, self.arch.spec.linears[0].name))
        prepared = getattr(first, "prepared", None)  # replaced by `to`, like the norm's weight
        state = (weight.data_ptr(), weight.dtype, hidden.dtype, str(hidden.device), id(prepared))
        if self.decoder is None or state != self._built_for:
            self.decoder = self.exact = None
            self._linears = self._current_linears(base)
            try:
                self.decoder = build_decoder(base, self.arch, self.kv, self.sinks.count, hidden)
                if self.sinks.count:
                    self.exact = build_decoder(base, self.arch, self.kv, self.sinks.count, hidden, exact=True)
            except NotServable as reason:
                self.unfit = str(reason)
                raise
            self._built_for, self._angles, self._cache_table = state, AngleTable(), None
            self._hook_tables = hook_tables(base)
            if self._foreign_hooks():
                raise NotServable("hooks on the modules")
        return self.decoder

    def _current_linears(self, base: Any) -> list[Any]:
        """The modules that are the linears of the blocks now; none for mixtures, which never have a decoder."""
        if self.arch.spec.experts is not None:
            return []
        return [module_of(base, name) for _, _, name in self.arch.linears()]

    def _rope_angles(self, base: Any, hidden: Tensor, begin: int, rows: int) -> tuple[Tensor, Tensor]:
        """cos and sin float32 [rows, head_dim] of the positions begin .. begin + rows, from the model's own module."""
        cos, sin = self._angles.until(begin + rows, base.rotary_emb, hidden[:1, :1])
        return cos[begin : begin + rows], sin[begin : begin + rows]

    def _caches(self, decoder: Decoder, layers: list[DfqCacheLayer], needed: int, batch: int, hidden: Tensor) -> Tensor:
        """The decoder's table of cache buffers with room for `needed` positions; built again only when a buffer was
        replaced."""
        buffers: list[Any] = []
        for layer in layers:
            if layer.packed is None:
                layer.initialize(hidden.dtype, hidden.device, self.arch.head_dim)
            assert layer.packed is not None
            for store in layer.packed:
                if not store.parts or store.parts[0].shape[0] < needed:
                    store.reserve(needed, layer.length, batch, self.arch.n_kv_heads, hidden.device)
                buffers.append(store.parts)
            if self.sinks.count:
                if layer.sink_states.tensors is None:
                    states = (batch, self.arch.n_kv_heads, self.arch.head_dim)
                    layer.sink_states.allocate(states, states, hidden.dtype, hidden.device)
                buffers.append(layer.sink_states.tensors)
        if self._cache_table is None or not _are_same(self._cache_table[0], buffers):
            stores = [(layer.packed[0].buffers(), layer.packed[1].buffers()) for layer in layers if layer.packed]
            sinks = [layer.sink_states.tensors for layer in layers if layer.sink_states.tensors is not None]
            self._cache_table = (buffers, decoder.caches(stores, sinks if self.sinks.count else None))
        return self._cache_table[1]


def _are_same(before: list[Any], now: list[Any]) -> bool:
    """Whether both hold the same objects (lists of buffers, which are replaced and never changed)."""
    return len(before) == len(now) and all(a is b for a, b in zip(before, now))


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward of a base model: natively if that fits, by its modules otherwise."""
    out = self.dfq_native.serve(self, kwargs) if not args else None
    return type(self).forward(self, *args, **kwargs) if out is None else out


def attach_native_decoder(model: Any, base: Any, arch: BoundArch, kv: KVSpec | None, sinks: Sinks) -> None:
    """Let the forward of `base`, the part of `model` below its head, try the native path first."""
    decoder = NativeDecoder(arch, kv, sinks)
    base.dfq_native = model.dfq_native = decoder
    if decoder.unfit is None:
        replace_forward(base, _forward)
