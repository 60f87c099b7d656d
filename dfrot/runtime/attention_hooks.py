"""Wrapping a model's attention function for the length of a `with` block: to observe it, or to compute it row by row.

What attention looks at can only be read off the tensors that enter the product; recomputing them elsewhere would need
every architecture's norms and position encodings. So the function that computes attention is wrapped in transformers'
table (dfrot/compat/attention.py) and unwrapped again. It still computes everything; nothing of the model changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dfrot.compat import attention as table
from dfrot.compat.attention import AttentionFunction
from dfrot.runtime.attention import NAME, register_attention
from dfrot.runtime.kv_cache import CacheView

ROW_WISE = ("sdpa", NAME)
"""Attention functions that can be called row by row: they take boolean masks."""


class AttentionCall(NamedTuple):
    """What one attention layer is about to compute, in the basis in which scores are formed: after RoPE, any q/k norm
    and R3."""

    layer: int
    query: Tensor
    """[B, heads, S, D]."""
    key: Tensor
    """[B, kv_heads, length, D]."""
    value: Tensor
    """[B, kv_heads, length, D]."""
    mask: Tensor | None
    """bool or additive, [B or 1, 1, S, length]; None: see `causal`."""
    scale: float
    """Scores are query key^T times this."""
    causal: bool
    """Whether the mask that is not there would be causal."""
    cap: float | None
    """Scores x become cap * tanh(x / cap); None: no cap."""


Observe = Callable[[int, Tensor, Tensor, Tensor | None, float, bool, "float | None"], None]
"""(layer, query, key, mask, scale, causal, cap) of an `AttentionCall`."""


def attention_name(model: Any) -> str:
    """The name of the attention function that the language model of a loaded model runs."""
    return table.implementation(model.get_decoder().config)


def _call(module: Any, query: Tensor, key: Any, value: Any, mask: Tensor | None, options: dict[str, Any]) -> Any:
    """The AttentionCall behind the arguments of an attention function."""
    if isinstance(key, CacheView):
        key, value = key.tensors()
    causal = bool(getattr(module, "is_causal", True)) and query.shape[2] > 1
    scaling = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if getattr(module, "r3_base", None) is not None:
        query = torch.ops.dfq.hadamard(query, module.r3_base, module.r3_block)
    return AttentionCall(module.layer_idx, query, key, value, mask, scale, causal, options.get("softcap"))


@contextlib.contextmanager
def _observed(config: Any, observe: Callable[[AttentionCall], None]) -> Iterator[None]:
    """Call `observe` before every attention of the modules that hold this very configuration object."""

    def wrap(attention: AttentionFunction) -> AttentionFunction:
        def observed(module: nn.Module, *inputs: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
            if module.config is config:  # not of a vision tower, which may name its arguments (Qwen-VL)
                query, key, value, mask = inputs
                observe(_call(module, query, key, value, mask, options))
            return attention(module, *inputs, **options)

        return observed

    with table.wrapped(table.implementation(config), wrap):
        yield


@contextlib.contextmanager
def observe_attention(model: Any, observe: Observe) -> Iterator[None]:
    """Call `observe` before every attention of the language model of a loaded model."""

    def observe_call(call: AttentionCall) -> None:
        observe(call.layer, call.query, call.key, call.mask, call.scale, call.causal, call.cap)

    with _observed(model.get_decoder().config, observe_call):
        yield


@contextlib.contextmanager
def observe_block_attention(block: nn.Module, observe: Callable[[AttentionCall], None]) -> Iterator[None]:
    """Call `observe` before every attention of one block, which shares its configuration with no other module (as the
    blocks of a `BlockRunner` do).

    A block with "eager" attention runs `dfq` meanwhile: "eager" is not in the table, and `dfq` computes the caps for
    which a BlockRunner chooses it."""
    configs = {id(m.config): m.config for m in block.modules() if hasattr(m, "layer_idx") and hasattr(m, "config")}
    (config,) = configs.values()
    name = table.implementation(config)
    if table.registered(name) is None:
        register_attention()
        table.set_implementation(config, NAME)
    try:
        with _observed(config, observe):
            yield
    finally:
        table.set_implementation(config, name)


@contextlib.contextmanager
def attend_row_by_row(
    model: Any, past: int, paths: Sequence[list[int]], windows: Sequence[int | None]
) -> Iterator[None]:
    """Compute the attention of a block of new rows behind `past` cached ones as one call per row.

    Row i sees the cached positions and the new rows of paths[i], its ancestors and itself; in layers with a window
    (windows: one entry per layer, None: no window) only the last of them. A row gets exactly the call that decoding one
    token at a time would make, in shapes, mask and order of summation, and hence the same bits."""
    window_mask = _WindowMasks()

    def wrap(attention: AttentionFunction) -> AttentionFunction:
        def row_by_row(
            module: nn.Module, query: Tensor, key: Any, value: Any, mask: Tensor | None, **options: Any
        ) -> tuple[Tensor, Tensor | None]:
            packed = _PackedRows(key, past, len(paths)) if isinstance(key, CacheView) else None
            layer: Any = module.layer_idx
            rows = []
            for row, path in enumerate(paths):
                keys, values = (packed.view(path),) * 2 if packed is not None else _along(path, past, key, value)
                row_mask = window_mask(past + len(path), windows[layer], query.device)
                rows.append(attention(module, query[:, :, row : row + 1], keys, values, row_mask, **options)[0])
            if packed is not None:
                packed.restore()
            return torch.cat(rows, 1), None

        return row_by_row

    with table.wrapped(attention_name(model), wrap):
        yield


def _is_chain(path: list[int]) -> bool:
    """Whether a path of new rows is 0, 1, 2, ...: already in place behind the cached positions."""
    return path == list(range(len(path)))


def _along(path: list[int], past: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [B, kv_heads, past + len(path), D] that the last row of `path` sees."""
    if _is_chain(path):
        length = past + len(path)
        return key[:, :, :length], value[:, :, :length]
    index = torch.tensor([*range(past), *(past + node for node in path)], device=key.device)
    return key.index_select(2, index), value.index_select(2, index)


class _WindowMasks:
    """The masks of single rows, as transformers makes them: none while the window holds every position."""

    def __init__(self) -> None:
        self._masks: dict[tuple[int, int], Tensor] = {}

    def __call__(self, length: int, window: int | None, device: torch.device) -> Tensor | None:
        """bool [1, 1, 1, length] for the row at position length - 1, or None."""
        if window is None or length < window:
            return None
        if (length, window) not in self._masks:
            positions = torch.arange(length, device=device)
            self._masks[length, window] = (positions >= length - window)[None, None, None]
        return self._masks[length, window]


class _PackedRows:
    """The packed keys and values of a block of new rows. For each row its ancestors are copied, as bytes, right behind
    the cached positions; `restore` puts everything back where it was."""

    def __init__(self, view: CacheView, past: int, count: int) -> None:
        self.full, self.past, self.count = view, past, count
        self.parts = [part for store in view.stores for part in store.parts]
        self.saved: list[Tensor] | None = None

    def view(self, path: list[int]) -> CacheView:
        """A view of the cached positions and the rows of `path`."""
        if self.saved is None and not _is_chain(path):
            self.saved = [part[self.past : self.past + self.count].clone() for part in self.parts]
        if self.saved is not None:
            index = torch.tensor(path)
            for part, rows in zip(self.parts, self.saved):
                part[self.past : self.past + len(path)] = rows[index.to(part.device)]
        return CacheView(self.full.layer, self.full.stores, self.past + len(path))

    def restore(self) -> None:
        """Undo every copy."""
        for part, rows in zip(self.parts, self.saved or ()):
            part[self.past : self.past + self.count] = rows
