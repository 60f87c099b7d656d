"""Training samples with images, their features from the running target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dfrot.draft.feature_selection import FeatureChooser, FeatureSelection
from dfrot.draft.training.corpus import Corpus, padded_corpus
from dfrot.draft.training.multimodal_data import MultimodalSample
from dfrot.draft.training.target_features import TargetFeatures, multimodal_features, text_features
from dfrot.errors import InputError
from dfrot.generation.image_attention import kept_positions
from dfrot.generation.multimodal import image_attention_probe
from dfrot.generation.target import Target
from dfrot.vision.settings import KEEP

TRAINED_SHARES = (0.5, 0.75, 1.0)  # shares of image tokens that training draws from


class MultimodalSource:
    """A `FeatureSource` (sources.py) of conversations about images."""

    def __init__(
        self,
        target: Target,
        train: Sequence[MultimodalSample],
        held_out: Sequence[MultimodalSample],
        select: str = "sample",
        keep: float = KEEP,
    ) -> None:
        """select: of the intermediate feature. keep: share of image tokens that are slots of the draft in held-out
        samples; training draws it from TRAINED_SHARES."""
        self.target, self.selection, self.keep = target, FeatureSelection.parse(select), keep
        self.samples = {"train": train, "held_out": held_out}
        self.corpora = {side: _corpus(samples) for side, samples in self.samples.items()}

    def corpus(self, side: str) -> Corpus:
        """The samples of a side as token ids."""
        return self.corpora[side]

    def batch(self, side: str, index: Tensor) -> tuple[Corpus, TargetFeatures]:
        """The samples of `index` int64 [B] with their features and the slots that they keep."""
        rows, features, scores = self.scored(side, index)
        return rows, replace(features, kept=kept_slots(scores, share_of(side, index, self.keep)))

    def scored(self, side: str, index: Tensor) -> tuple[Corpus, TargetFeatures, Tensor]:
        """Samples with their features, without a choice of slots, and the scores float32 [B, S] for
        `kept_positions`."""
        rows = self.corpora[side].rows(index)
        computed = [self._sample(self.samples[side][int(n)], rows.tokens.shape[1]) for n in index]
        names = [name for name, value in vars(computed[0][0]).items() if value is not None]
        stacked = {name: torch.stack([getattr(features, name) for features, _ in computed]) for name in names}
        return rows, TargetFeatures(**stacked), torch.stack([scores for _, scores in computed])

    def _sample(self, sample: MultimodalSample, length: int) -> tuple[TargetFeatures, Tensor]:
        """Features and scores of one sample, without a batch dimension, padded at the end to `length` positions."""
        ids, target, begin = torch.tensor(sample.tokens), self.target, sample.prompt
        scores = torch.full((length,), -1.0)
        if sample.inputs:
            probe = image_attention_probe(target, ids[:begin])
            chooser = FeatureChooser(self.selection, sample.counts()[None, begin:], target.n_layers)
            features = multimodal_features(target, ids, begin, sample.inputs, chooser, probe)
            scores[:begin] = probe.scores_by_position()
        else:
            chooser = FeatureChooser(self.selection, sample.counts()[None], target.n_layers)
            features = text_features(target, ids[None], chooser)
            features.embeddings = target.embed(ids[None])
        by_position = {name: getattr(features, name) for name in ("last", "mid", "aux", "embeddings")}
        padded = {name: None if x is None else _pad(x[0], length) for name, x in by_position.items()}
        return TargetFeatures(**padded), scores  # type: ignore[arg-type]


def share_of(side: str, index: Tensor, keep: float) -> float:
    """The share of image tokens that a batch keeps. In training it is drawn, the same for the same samples."""
    return TRAINED_SHARES[int(index.sum()) % len(TRAINED_SHARES)] if side == "train" else keep


def kept_slots(scores: Tensor, share: float) -> Tensor:
    """`kept_positions` of every row of a batch, int64 [B, n]. Rows that keep fewer slots repeat the last position,
    which never counts and which no other slot sees."""
    kept = [kept_positions(row, share) for row in scores]
    most, last = max(map(len, kept)), scores.shape[1] - 1
    return torch.stack([torch.cat([row, row.new_full((most - len(row),), last)]) for row in kept])


def _pad(x: Tensor, length: int) -> Tensor:
    """x [n, d] with zeros at the end, [length, d]."""
    return torch.cat([x, x.new_zeros(length - len(x), x.shape[1])])


def _corpus(samples: Sequence[MultimodalSample]) -> Corpus:
    for row, sample in enumerate(samples):
        if not 0 < sample.prompt < len(sample.tokens) - 1:
            raise InputError(f"sample {row}: an answer of at least two tokens behind a prompt is needed")
    return padded_corpus([(sample.tokens, sample.counts().tolist()) for sample in samples])
