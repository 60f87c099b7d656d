"""What the rows of a decoding step see, read off the mask that transformers made for it.

transformers expresses padding, sliding windows and trees of drafted tokens as one boolean mask [B, 1, S, length]. The
decode kernel wants them apart: the first cached position of every row, and which of the new positions it sees.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Visible(NamedTuple):
    """first int64 [B, S] or None (all cached positions); tree bool [B, S, S] or None (those up to the row itself)."""

    first: Tensor | None
    tree: Tensor | None


def of_mask(mask: Tensor | None, rows: int, length: int) -> Visible | None:
    """The mask of `rows` new positions at the end of `length`. None: not of that form, PyTorch's attention must serve.

    Every layer of a step gets the same mask: the answer is kept with it."""
    if mask is None:  # transformers leaves it out for one row, and for a first call
        return Visible(None, None) if rows in (1, length) else None
    kept = getattr(mask, "_dfq_visible", None)
    if kept is None:
        kept = mask._dfq_visible = (_read(mask, rows, length),)  # type: ignore[attr-defined]
    answer: Visible | None = kept[0]
    return answer


def _read(mask: Tensor, rows: int, length: int) -> Visible | None:
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2:] != (rows, length):
        return None
    past = length - rows
    cached, new = mask[:, 0, :, :past], mask[:, 0, :, past:]
    first = past - cached.sum(-1)
    if not torch.equal(cached, torch.arange(past, device=mask.device) >= first[:, :, None]):
        return None  # holes among the cached positions
    if torch.equal(new, torch.ones_like(new).tril()):
        return Visible(first if bool(first.any()) else None, None)
    return Visible(first, new)
