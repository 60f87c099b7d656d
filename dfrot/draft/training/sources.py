"""Where training features come from: the running target, or files that `dfq draft extract` wrote."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from dfrot.draft.feature_selection import FeatureChooser, FeatureSelection
from dfrot.draft.training.corpus import Corpus
from dfrot.draft.training.target_features import TargetFeatures, text_features
from dfrot.generation.target import Target

SIDES = ("train", "held_out")


class FeatureSource(Protocol):
    """Samples of a side (`train` or `held_out`) with their features."""

    def corpus(self, side: str) -> Corpus:
        """The samples of a side as token ids."""
        ...

    def batch(self, side: str, index: Tensor) -> tuple[Corpus, TargetFeatures]:
        """The samples of `index` int64 [B] with their features."""
        ...


class LiveFeatures:
    """A `FeatureSource` of text: the target computes features when they are asked for."""

    def __init__(self, target: Target, train: Corpus, held_out: Corpus, select: str) -> None:
        """select: of the intermediate feature (`FeatureSelection.parse`)."""
        self.target, self.selection = target, FeatureSelection.parse(select)
        self.corpora = dict(zip(SIDES, (train, held_out)))

    def corpus(self, side: str) -> Corpus:
        """The samples of a side as token ids."""
        return self.corpora[side]

    def batch(self, side: str, index: Tensor) -> tuple[Corpus, TargetFeatures]:
        """The samples of `index` int64 [B] with their features."""
        rows = self.corpora[side].rows(index)
        chooser = FeatureChooser(self.selection, rows.mask, self.target.n_layers)
        return rows, text_features(self.target, rows.tokens, chooser)
