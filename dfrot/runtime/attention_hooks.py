"""Standing between a model and its attention function for the length of a `with`: to look on, or to split rows.

transformers' table of attention functions has a local layer on top of the global one; ours goes there and leaves
again. Nothing of the model changes, and whatever function served it still does the computing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.runtime.attention import NAME
from dfrot.runtime.kv_cache import CacheView

Attention = Callable[..., tuple[Tensor, Tensor | None]]
Observe = Callable[[int, Tensor, Tensor, Tensor | None, float, bool, "float | None"], None]
"""(layer, query [B, H, Q, D], key [B, Hkv, K, D], mask, scale, causal, cap): what one attention is about to compute;
scores x become cap * tanh(x / cap) unless cap is None."""
SPLIT = ("sdpa", NAME)  # attention functions whose rows are computed one by one from boolean masks


def attention_name(model: Any) -> str:
    """The attention function that serves the language model of a loaded model."""
    return str(model.get_decoder().config._attn_implementation)


@contextlib.contextmanager
def _replaced(model: Any, wrap: Callable[[Attention], Attention]) -> Iterator[None]:
    """Serve the model's attention through `wrap(the function that served it)`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as table

    name = attention_name(model)
    local: dict[str, Any] = table._local_mapping
    before = local.get(name)
    table[name] = wrap(table[name])
    try:
        yield
    finally:
        if before is None:
            del table[name]
        else:
            table[name] = before


@contextlib.contextmanager
def observe_attention(model: Any, observe: Observe) -> Iterator[None]:
    """Call `observe` before every attention of the language model, in the basis in which scores are formed (after RoPE
    and R3)."""
    language = model.get_decoder().config

    def wrap(base: Attention) -> Attention:
        def looked_on(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
            if module.config is not language:  # of a vision tower
                return base(module, *args, **kwargs)
            query, key, value, mask = args
            scale = kwargs.get("scaling")
            rotated = query
            seen = key.tensors()[0] if isinstance(key, CacheView) else key
            if getattr(module, "r3_base", None) is not None:
                rotated = torch.ops.dfq.hadamard(query, module.r3_base, module.r3_block)
            causal = bool(getattr(module, "is_causal", True)) and query.shape[2] > 1
            layer: Any = module.layer_idx
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            observe(layer, rotated, seen, mask, scale, causal, kwargs.get("softcap"))
            return base(module, query, key, value, mask, **kwargs)

        return looked_on

    with _replaced(model, wrap):
        yield


@contextlib.contextmanager
def attend_row_by_row(
    model: Any, past: int, paths: Sequence[list[int]], windows: Sequence[int | None]
) -> Iterator[None]:
    """Attention of a block of new rows behind `past` cached ones as so many calls with one row each.

    Row i sees the cached positions and the new rows of paths[i], its ancestors and itself, in layers with a window
    (windows: one per layer, None where there is none) only the last of them. It gets exactly the call that decoding
    one token at a time would make: the same shapes, mask or none, summation order, hence the same bits."""
    masks: dict[tuple[int, int], Tensor] = {}

    def seen_by(seen: int, window: int | None, query: Tensor) -> Tensor | None:
        """The mask of one row at position seen - 1, as transformers makes it: none while the window holds all."""
        if window is None or seen < window:
            return None
        if (seen, window) not in masks:
            places = torch.arange(seen, device=query.device)
            masks[seen, window] = (places >= seen - window)[None, None, None]
        return masks[seen, window]

    def wrap(base: Attention) -> Attention:
        def split(
            module: nn.Module, query: Tensor, key: Any, value: Any, mask: Tensor | None, **kwargs: Any
        ) -> tuple[Tensor, Tensor | None]:
            stored = _Stored(key, past, len(paths)) if isinstance(key, CacheView) else None
            layer: Any = module.layer_idx
            rows = []
            for row, path in enumerate(paths):
                seen, index = past + len(path), None
                if path != list(range(len(path))):
                    index = torch.tensor([*range(past), *(past + node for node in path)], device=query.device)
                if stored is not None:
                    keys = values = stored.view(path)
                elif index is None:
                    keys, values = key[:, :, :seen], value[:, :, :seen]
                else:
                    keys, values = key.index_select(2, index), value.index_select(2, index)
                own = seen_by(seen, windows[layer], query)
                rows.append(base(module, query[:, :, row : row + 1], keys, values, own, **kwargs)[0])
            if stored is not None:
                stored.restore()
            return torch.cat(rows, 1), None

        return split

    with _replaced(model, wrap):
        yield


class _Stored:
    """The packed rows of a block: for every row its ancestors are put together behind the cached positions, as bytes,
    and in the end everything is back where it was."""

    def __init__(self, view: CacheView, past: int, count: int) -> None:
        self.whole, self.past, self.count = view, past, count
        self.parts = [part for store in view.stores for part in store.parts]
        self.saved: list[Tensor] | None = None

    def view(self, path: list[int]) -> CacheView:
        if self.saved is None and path != list(range(len(path))):
            self.saved = [part[self.past : self.past + self.count].clone() for part in self.parts]
        if self.saved is not None:
            index = torch.tensor(path)
            for part, rows in zip(self.parts, self.saved):
                part[self.past : self.past + len(path)] = rows[index.to(part.device)]
        return CacheView(self.whole.layer, self.whole.stores, self.past + len(path))

    def restore(self) -> None:
        for part, rows in zip(self.parts, self.saved or ()):
            part[self.past : self.past + self.count] = rows
