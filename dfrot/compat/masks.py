"""The attention masks that transformers makes: making one, and reading one for the kernels.

transformers expresses padding, sliding windows and draft trees as one boolean mask [B, 1, S, length]. The attention
kernel wants them apart: the first cached position that each row sees, and which of the new positions it sees.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class VisiblePositions(NamedTuple):
    """What each of the S new rows sees, as `dfq::kv_attention` takes it."""

    first: Tensor | None
    """int64 [B, S]: the first cached position that a row sees; None: all cached positions."""
    tree: Tensor | None
    """bool [B, S, S]: which new positions a row sees; None: those up to the row itself."""


def causal_mask(config: Any, hidden: Tensor, positions: Tensor, sliding: bool) -> Any:
    """The mask of a model's first call on hidden [B, S, d] at positions int64 [1, S], nothing being cached.

    sliding: within the configuration's `sliding_window`. Its form depends on the configuration's attention function;
    None where that function is causal by itself."""
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    create = create_sliding_window_causal_mask if sliding else create_causal_mask
    return create(
        config=config, inputs_embeds=hidden, attention_mask=None, past_key_values=None, position_ids=positions
    )


def visible_positions(mask: Tensor | None, rows: int, length: int) -> VisiblePositions | None:
    """Read the mask of `rows` new positions at the end of `length`. None: it has another form, and PyTorch's attention
    must compute the call.

    Every layer of a step gets the same mask tensor, so the answer is kept on it as an attribute: reading it takes a
    comparison over the whole mask."""
    if mask is None:  # transformers passes none for one row, and for a first call
        return VisiblePositions(None, None) if rows in (1, length) else None
    cached = getattr(mask, "_dfq_visible", None)
    if cached is None:
        cached = mask._dfq_visible = (_read(mask, rows, length),)  # type: ignore[attr-defined]
    visible: VisiblePositions | None = cached[0]
    return visible


def _read(mask: Tensor, rows: int, length: int) -> VisiblePositions | None:
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2:] != (rows, length):
        return None
    past = length - rows
    cached, new = mask[:, 0, :, :past], mask[:, 0, :, past:]
    first = past - cached.sum(-1)
    if not torch.equal(cached, torch.arange(past, device=mask.device) >= first[:, :, None]):
        return None  # holes among the cached positions
    if torch.equal(new, torch.ones_like(new).tril()):
        return VisiblePositions(first if bool(first.any()) else None, None)
    return VisiblePositions(first, new)
