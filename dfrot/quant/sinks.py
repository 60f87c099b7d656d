"""Leading positions that stay in full precision (attention sinks), as in the papers' FP16 ablation.

The first tokens of a sequence carry the massive activations of large models. With `sink_tokens` N the block
linears see the activations of positions < N unquantized, and the cache keeps their keys and values in 16 bits.
Positions count from the first real token, behind any left padding.

What they are worth: docs/results/ingredients.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Sinks:
    """Which rows of the running call are sinks. Shared by all linears and cache layers of one model.

    count: N, sink tokens per sequence. starts: int64 [B], padded positions before each sequence; None: no left padding.
    rows: int64 indices into the call's [B * S] rows, or None when this call touches no sink.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.starts: Tensor | None = None
        self.rows: Tensor | None = None

    def begin(self, batch: int, length: int, past: int, starts: Tensor | None) -> None:
        """A call starts with `length` new positions per sequence after `past` cached ones. starts: as the attribute."""
        self.starts = starts
        last = self.count + (int(starts.max()) if starts is not None else 0)
        if past >= last:
            self.rows = None
            return
        positions = torch.arange(past, past + length)
        first = torch.zeros(batch, dtype=torch.long) if starts is None else starts.cpu()
        offset = positions[None, :] - first[:, None]
        rows = ((offset >= 0) & (offset < self.count)).flatten().nonzero().flatten()
        self.rows = rows if len(rows) else None

    @contextmanager
    def among(self, rows: Tensor) -> Iterator[None]:
        """While active, `rows` are indices into the rows int64 [n] of the call that are computed, in this order: an
        expert's tokens."""
        of_call = self.rows
        if of_call is not None:
            of_expert = torch.isin(rows.cpu(), of_call).nonzero().flatten()
            self.rows = of_expert if len(of_expert) else None
        try:
            yield
        finally:
            self.rows = of_call

    def end(self) -> None:
        """The call ends: what follows (the head) has other rows."""
        self.rows = None
