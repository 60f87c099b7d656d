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
