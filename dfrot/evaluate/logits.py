"""Logits of a model's head in tiles, and what is accumulated over them.

The logits of a window over a vocabulary of 152,000 are 1.2 GB in float32, of which a loss needs one number per row. So
the head is multiplied tile by tile, every tile is used while it is in the cache, and each row keeps a running
log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS, COLUMNS = 1024, 1024  # of a tile: 4 MB in float32, and a share of the head's weight that stays in the cache
LOGIT_BYTES = 1 << 27  # float32 logits at a time of a head that can only compute whole rows
LOWEST = torch.finfo(torch.float32).min


class TiledHead:
    """The head of a loaded model. Its product is in the model's dtype; caps and divisors of logits are applied."""

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        self.module: nn.Module = model.get_output_embeddings()
        self.cap = getattr(config, "final_logit_softcapping", None)
        self.divisor = getattr(config, "logits_scaling", None) or 1.0
        self.vocabulary = int(self.module.out_features)
        self._plain = type(self.module) is nn.Linear
        self.rows: int = ROWS if self._plain else max(1, min(ROWS, LOGIT_BYTES // (4 * self.vocabulary)))
        """Rows of a tile. A quantized head computes whole rows, and fewer of them."""

    def logits(self, hidden: Tensor) -> Tensor:
        """All logits float32 [M, vocabulary] of hidden [M, d]; gradients pass. In float32, a head whose weight lies in
        another dtype multiplies in that."""
        if self._plain and hidden.dtype != self.module.weight.dtype:
            hidden = hidden.to(self.module.weight.dtype)  # type: ignore[arg-type]
        return self._finished(self.module(hidden))

    def tiles(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(first token id, logits float32 [M, n]) over the vocabulary, for hidden [M, d] of at most `rows` rows."""
        logits = None if self._plain else self.module(hidden)
        for begin in range(0, self.vocabulary, COLUMNS):
            columns = slice(begin, begin + COLUMNS)
            yield begin, self._finished(self._product(hidden, columns) if logits is None else logits[:, columns])

    def _product(self, hidden: Tensor, columns: slice) -> Tensor:
        """Some columns of what a plain linear makes of hidden [M, d]."""
        weight: Any = self.module.weight
        bias: Any = self.module.bias
        return F.linear(hidden, weight[columns], None if bias is None else bias[columns])

    def _finished(self, logits: Tensor) -> Tensor:
        if self.divisor != 1.0:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits.float()


class RunningLogSumExp:
    """The log-sum-exp of rows whose values arrive in tiles."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.largest = torch.full((rows,), LOWEST, device=device)
        self.total = torch.zeros(rows, dtype=torch.float64, device=device)

    def add(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """values float32 [M, n]: the next tile.

        Returns exp(values - largest so far) [M, n], and the factor float64 [M] of what was summed before in these
        terms."""
        largest = torch.maximum(self.largest, values.amax(-1))
        factor = (self.largest - largest).double().exp_()
        exponentials = torch.sub(values, largest[:, None]).exp_()
        self.total = self.total.mul_(factor).add_(exponentials.sum(-1))
        self.largest = largest
        return exponentials, factor

    def value(self) -> Tensor:
        """float64 [M]."""
        return self.total.log() + self.largest


class TokenLogits:
    """The logits of one token per row, picked from tiles."""

    def __init__(self, tokens: Tensor) -> None:
        """tokens: int64 [M], their ids."""
        self.tokens = tokens
        self.values = torch.full(tokens.shape, torch.nan, dtype=torch.float64, device=tokens.device)

    def add(self, begin: int, tile: Tensor) -> None:
        """tile: logits float32 [M, n] of ids begin .. begin + n."""
        column = self.tokens - begin
        rows = ((column >= 0) & (column < tile.shape[1])).nonzero().flatten()
        self.values[rows] = tile[rows, column[rows]].double()


class LikeliestTokens:
    """The most likely token of each row, the first of equal ones."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.largest = torch.full((rows,), -torch.inf, device=device)
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)

    def add(self, begin: int, tile: Tensor) -> None:
        """tile: logits float32 [M, n] of ids begin .. begin + n."""
        largest = tile.amax(-1)
        rows = (largest > self.largest).nonzero().flatten()  # few, and finding positions is slower than finding values
        self.tokens[rows] = tile[rows].argmax(-1) + begin
        self.largest = torch.maximum(self.largest, largest)


def token_losses(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy float64 [M] of the tokens `targets` int64 [M] behind the head's inputs hidden [M, d]."""
    head = TiledHead(model)
    losses = []
    for rows, tokens in zip(torch.split(hidden, head.rows), torch.split(targets, head.rows)):
        total, chosen = RunningLogSumExp(len(rows), rows.device), TokenLogits(tokens)
        for begin, tile in head.tiles(rows):
            chosen.add(begin, tile)
            total.add(tile)
        losses.append(total.value() - chosen.values)
    return torch.cat(losses)
