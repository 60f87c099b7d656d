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

Attention = Callable[..., tuple[Tensor, Tensor | None]]
Observe = Callable[[int, Tensor, Tensor, Tensor | None, float, bool], None]
"""(layer, query [B, H, Q, D], key [B, Hkv, K, D], mask, scale, causal): what one attention is about to compute."""


@contextlib.contextmanager
def _replaced(model: Any, wrap: Callable[[Attention], Attention]) -> Iterator[None]:
    """Serve the model's attention through `wrap(the function that served it)`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as table

    name = model.get_decoder().config._attn_implementation
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
def observing(model: Any, observe: Observe) -> Iterator[None]:
    """Call `observe` before every attention, in the basis in which scores are formed (after RoPE and R3)."""

    def wrap(base: Attention) -> Attention:
        def looked_on(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
        ) -> tuple[Tensor, Tensor | None]:
            scale = kwargs.get("scaling")
            rotated = query
            if getattr(module, "r3_base", None) is not None:
                rotated = torch.ops.dfq.hadamard(query, module.r3_base, module.r3_block)
            causal = bool(getattr(module, "is_causal", True)) and query.shape[2] > 1
            layer: Any = module.layer_idx
            observe(layer, rotated, key, mask, scale if scale is not None else query.shape[-1] ** -0.5, causal)
            return base(module, query, key, value, mask, **kwargs)

        return looked_on

    with _replaced(model, wrap):
        yield


@contextlib.contextmanager
def row_by_row(model: Any, visible: Sequence[Tensor | int], window: int | None = None) -> Iterator[None]:
    """Attention of a block of rows as so many calls with one row each, over the keys that this row sees.

    Row i gets exactly the call that decoding one token at a time would make: the same shapes, no mask, the same
    summation order, hence the same bits. visible: per row the key indices int64 (rising), or a count of leading
    keys. window: sliding attention of all layers (a row then also needs the mask, which is taken from the call).
    """

    def wrap(base: Attention) -> Attention:
        def split(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
        ) -> tuple[Tensor, Tensor | None]:
            rows = []
            for row, seen in enumerate(visible):
                if isinstance(seen, int):
                    keys, values = key[:, :, :seen], value[:, :, :seen]
                else:
                    keys, values = key.index_select(2, seen), value.index_select(2, seen)
                own = None
                if window is not None and keys.shape[2] >= window and mask is not None:
                    own = mask[:, :, row : row + 1]
                    own = own[..., :seen] if isinstance(seen, int) else own.index_select(3, seen)
                rows.append(base(module, query[:, :, row : row + 1], keys, values, own, **kwargs)[0])
            return torch.cat(rows, 1), None

        return split

    with _replaced(model, wrap):
        yield
