"""Which intermediate feature of the target the draft imitates, decided by attention entropy while the layers run.

The layer with the least spread attention has the output that is worth imitating (DREAM, arXiv 2505.19201, section
3.2). Only the best candidate so far is kept in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot.errors import InputError

MIN_VISIBLE = 2  # a row that sees a single key has no entropy to compare


@dataclass(frozen=True)
class FeatureSelection:
    """How the intermediate feature is chosen."""

    kind: str
    """`sample` (one layer per sequence), `token` (one per position), `static` (a fixed layer) or `none`."""
    share: float = 0.0
    """Of `static`: depth of the layer as a share of all layers."""

    @classmethod
    def parse(cls, text: str) -> FeatureSelection:
        """From `sample`, `token`, `none` or `static:F` with 0 < F < 1. Raises InputError for anything else."""
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
        raise InputError(
            f"`select` {text}: use sample, token, none or static:F with F between 0 and 1",
            field="select",
        )


class FeatureChooser:
    """Keeps the best layer output of one forward pass.

    After the pass, `feature` [B, S, d] is the chosen output and `layer` int64 [B, S] or [B, 1] the layer that it is
    of (1 is the output of the first decoder layer); both None for the selection `none`.
    """

    def __init__(self, selection: FeatureSelection, rows: Tensor, n_layers: int) -> None:
        """rows: bool [B, S], the positions whose entropies count. n_layers: of the target."""
        self.selection, self.rows, self.n_layers = selection, rows, n_layers
        self.static = min(max(round(selection.share * n_layers), 1), n_layers - 1)
        self.score: Tensor | None = None  # of the layer that is running: [B, S] (token) or [B, 1]
        self.best: Tensor | None = None
        self.feature: Tensor | None = None
        self.layer: Tensor | None = None

    def wants_entropy(self, layer: int) -> bool:
        """Whether the attention of decoder layer `layer` (from 0) must be measured."""
        return self.selection.kind in ("sample", "token") and layer + 1 < self.n_layers

    def measured(self, entropy: Tensor, visible: Tensor) -> None:
        """Take the entropies and visible keys [B, S] of the running layer. Entropies are divided by log(visible),
        because layers with a sliding window would always win otherwise."""
        counted = self.rows & (visible >= MIN_VISIBLE)
        share = torch.where(counted, entropy / visible.clamp(min=MIN_VISIBLE).log(), 0.0)
        if self.selection.kind == "token":
            self.score = torch.where(counted, share, torch.inf)
        else:
            self.score = share.sum(-1, keepdim=True) / counted.sum(-1, keepdim=True).clamp(min=1)

    def offer(self, layer: int, output: Tensor) -> None:
        """Take the output [B, S, d] of decoder layer `layer` (from 0), after its attention was measured."""
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
            self._replace(score, output, number)
            return
        better = score < self.best
        if not bool(better.any()):
            return
        if bool(better.all()):  # spares the copy
            self._replace(score, output, number)
            return
        self.best = torch.where(better, score, self.best)
        self.feature = torch.where(better[..., None], output, self.feature)
        self.layer = torch.where(better.to(self.layer.device), number, self.layer)

    def _replace(self, score: Tensor, output: Tensor, number: int) -> None:
        self.best, self.feature = score, output
        self.layer = torch.full(score.shape, number)
