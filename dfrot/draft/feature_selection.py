"""Which intermediate feature of the target the draft imitates, decided by attention entropy as the layers run.

The least spread attention marks the layer whose output is worth imitating (DREAM, section 3.2). The probe computes
row entropies from queries and keys, a block of rows at a time, and the chooser keeps one candidate: neither a
[heads, S, S] tensor nor the features of more than the best layer so far exist at any time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot.errors import InputError

ROWS_AT_A_TIME = 64
SCORES_AT_A_TIME = 1 << 20  # of a block of rows, float32: long texts take fewer rows at a time
HIDDEN = -1e30  # as a score: finite, so that it times its weight of 0 is 0


@dataclass(frozen=True)
class FeatureSelection:
    """kind: sample (one layer per sequence), token (one per position), static (depth `share`) or none."""

    kind: str
    share: float = 0.0

    @classmethod
    def parse(cls, text: str) -> FeatureSelection:
        """`sample`, `token`, `none` or `static:F` with 0 < F < 1."""
        kind, _, rest = text.partition(":")
        if kind == "static":
            try:
                share = float(rest)
            except ValueError:
                share = -1.0
            if 0 < share < 1:
                return cls(kind, share)
        elif kind in ("sample", "token", "none") and not rest:
            return cls(kind)
        raise InputError(f"--feature-select {text}: use sample, token, none or static:F with F between 0 and 1")


def row_entropy(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    rows_at_a_time: int = ROWS_AT_A_TIME,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention entropy in nats, averaged over heads, and how many keys each row sees: both float32 [B, Q].

    query [B, H, Q, D], key [B, Hkv, K, D] as attention gets them. mask: bool (True is visible) or additive,
    [B or 1, H or 1, Q, K]; None means everything, or causal at offset K - Q. A row that sees nothing has entropy 0.
    cap: of the scores, as `capped` takes it.
    """
    batch, heads, length, dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, length, dim)
    transposed = key.float().transpose(-1, -2)
    entropy = query.new_empty((batch, length), dtype=torch.float32)
    visible = torch.empty_like(entropy)
    places = torch.arange(keys, device=query.device)
    many = max(1, min(rows_at_a_time, SCORES_AT_A_TIME // (batch * heads * keys)))
    for begin in range(0, length, many):
        end = min(begin + many, length)
        reach = end + keys - length if mask is None and causal else keys  # no row here sees further
        rows = grouped[..., begin:end, :].float().flatten(2, 3) @ transposed[..., :reach]
        scores = capped(rows.view(batch, heads, end - begin, reach).mul_(scale), cap)
        hidden: Tensor | None = None
        if mask is not None:
            part = mask[..., begin:end, :keys]
            if part.dtype == torch.bool:
                hidden = ~part
            else:  # an additive mask hides with a very negative number
                hidden = part <= torch.finfo(part.dtype).min / 2
                scores = scores + part.float().masked_fill(hidden, 0.0)
        elif causal:
            hidden = places[:reach] > torch.arange(begin, end, device=query.device)[:, None] + keys - length
        count = torch.full((1, 1, end - begin), float(reach), device=query.device)
        if hidden is not None:
            scores.masked_fill_(hidden, HIDDEN)
            count = (~hidden).sum(-1).float().view(*(1,) * (4 - hidden.dim()), *hidden.shape[:-1])
        scores.sub_(scores.amax(-1, keepdim=True))
        weights = scores.exp()
        mass = weights.sum(-1)
        found = mass.log() - scores.mul_(weights).sum(-1) / mass  # of log p = score - log(mass), the largest score at 0
        entropy[:, begin:end] = torch.where(count > 0, found, 0.0).mean(1)
        visible[:, begin:end] = count.mean(1)
    return entropy, visible


def capped(scores: Tensor, cap: float | None) -> Tensor:
    """Scores x of an architecture that lets only cap * tanh(x / cap) through (Gemma 2); None: as they are."""
    return scores if cap is None else torch.tanh(scores / cap) * cap


class FeatureChooser:
    """Keeps the best layer output so far. rows: bool [B, S], the positions that count."""

    def __init__(self, selection: FeatureSelection, rows: Tensor, n_layers: int) -> None:
        self.selection, self.rows, self.n_layers = selection, rows, n_layers
        self.static = min(max(round(selection.share * n_layers), 1), n_layers - 1)
        self.score: Tensor | None = None  # of the layer that is running: [B, S] (token) or [B, 1]
        self.best: Tensor | None = None
        self.feature: Tensor | None = None  # [B, S, d]
        self.layer: Tensor | None = None  # int64 [B, S] or [B, 1]: 1 is the output of the first decoder layer

    def wants_entropy(self, layer: int) -> bool:
        """Whether the attention of decoder layer `layer` (from 0) must be measured."""
        return self.selection.kind in ("sample", "token") and layer + 1 < self.n_layers

    def measured(self, entropy: Tensor, visible: Tensor) -> None:
        """Take the entropies of the running layer; divided by log(visible), else windowed layers always win."""
        counted = self.rows & (visible >= 2)
        share = torch.where(counted, entropy / visible.clamp(min=2).log(), 0.0)
        if self.selection.kind == "token":
            self.score = torch.where(counted, share, torch.inf)
        else:
            self.score = share.sum(-1, keepdim=True) / counted.sum(-1, keepdim=True).clamp(min=1)

    def offer(self, layer: int, output: Tensor) -> None:
        """Output [B, S, d] of decoder layer `layer` (from 0), after its attention was measured."""
        number = layer + 1
        if self.selection.kind == "static":
            if number == self.static:
                self.feature = output
                self.layer = torch.full((output.shape[0], 1), number)
            return
        if not self.wants_entropy(layer) or self.score is None:
            return
        score, self.score = self.score, None
        if self.best is None or self.feature is None or self.layer is None:
            self.best, self.feature = score, output
            self.layer = torch.full(score.shape, number)
            return
        better = score < self.best
        if not bool(better.any()):
            return
        if bool(better.all()):  # no copy
            self.best, self.feature = score, output
            self.layer = torch.full(score.shape, number)
            return
        self.best = torch.where(better, score, self.best)
        self.feature = torch.where(better[..., None], output, self.feature)
        self.layer = torch.where(better.to(self.layer.device), number, self.layer)
