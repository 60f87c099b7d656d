"""Prompts with images: which image tokens the draft sees, and samples to train on.

The target sees every image token; of the draft's slots only the share that the prompt itself looks at most is kept
(DREAM, section 3.3; the published code never runs its pruning). Positions do not move, and the cross-attention still
reaches every feature. Scores come from the rows behind the last image of the prompt alone, in training as in serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dfrot.draft.feature_selection import FeatureChooser, FeatureSelection
from dfrot.draft.training.corpus import Corpus
from dfrot.draft.training.target_features import TargetFeatures
from dfrot.errors import InputError
from dfrot.generation.image_attention import kept_positions
from dfrot.generation.target import Target
from dfrot.vision.settings import KEEP

TRAINED = (0.5, 0.75, 1.0)  # shares of image tokens that training draws from


@dataclass(frozen=True)
class MultimodalSample:
    """tokens: prompt and answer, image tokens in place. prompt: how many of them are the prompt. given: what else the
    processor made (pixel_values, image_sizes, ...), empty where there is no image. mask: slots that count, None for all
    of the answer."""

    tokens: list[int]
    prompt: int
    given: dict[str, Tensor]
    mask: tuple[bool, ...] | None = None

    def counts(self) -> Tensor:
        """bool [n]: tokens whose slots count; never the last, whose prediction has no use."""
        found = torch.zeros(len(self.tokens), dtype=torch.bool)
        found[self.prompt :] = True if self.mask is None else torch.tensor(self.mask[self.prompt :])
        found[-1] = False
        return found


class MultimodalSource:
    """Training samples with images, their features from the running target. keep: share of image tokens that held-out
    samples keep; training draws it from TRAINED."""

    def __init__(
        self,
        target: Target,
        train: Sequence[MultimodalSample],
        held_out: Sequence[MultimodalSample],
        select: str = "sample",
        keep: float = KEEP,
    ) -> None:
        self.target, self.selection, self.keep = target, FeatureSelection.parse(select), keep
        self.samples = {"train": train, "held_out": held_out}
        self.corpora = {side: _corpus(samples) for side, samples in self.samples.items()}

    def corpus(self, side: str) -> Corpus:
        return self.corpora[side]

    def batch(self, side: str, index: Tensor) -> tuple[Corpus, TargetFeatures]:
        """Samples with their features, and the slots that they keep."""
        rows, features, scores = self.scored(side, index)
        return rows, replace(features, kept=kept_slots(scores, share_of(side, index, self.keep)))

    def scored(self, side: str, index: Tensor) -> tuple[Corpus, TargetFeatures, Tensor]:
        """Features of samples without a choice of slots, and the scores float32 [B, S] for `kept_positions`."""
        rows = self.corpora[side].rows(index)
        found = [self._one(self.samples[side][int(n)], rows.tokens.shape[1]) for n in index]
        names = [name for name, value in vars(found[0][0]).items() if value is not None]
        stacked = {name: torch.stack([getattr(one, name) for one, _ in found]) for name in names}
        return rows, TargetFeatures(**stacked), torch.stack([scores for _, scores in found])

    def _one(self, sample: MultimodalSample, longest: int) -> tuple[TargetFeatures, Tensor]:
        """Features and scores of one sample, without a batch dimension, padded behind to `longest` positions."""
        ids, target, begin = torch.tensor(sample.tokens), self.target, sample.prompt
        scores = torch.full((longest,), -1.0)
        if sample.given:
            sight = target.image_attention_probe(ids[:begin])
            chooser = FeatureChooser(self.selection, sample.counts()[None, begin:], target.n_layers)
            made = target.features_seen(ids, begin, sample.given, chooser, sight)
            scores[:begin] = sight.spread()
        else:
            made = target.features(ids[None], FeatureChooser(self.selection, sample.counts()[None], target.n_layers))
            made.embeddings = target.embed(ids[None])
        whole = {"last": made.last, "mid": made.mid, "aux": made.aux, "embeddings": made.embeddings}
        padded = {name: None if x is None else _pad(x[0], longest) for name, x in whole.items()}
        return TargetFeatures(**padded), scores  # type: ignore[arg-type]


def share_of(side: str, index: Tensor, keep: float) -> float:
    """The share of image tokens that a batch keeps: training draws it, the same for the same samples."""
    return TRAINED[int(index.sum()) % len(TRAINED)] if side == "train" else keep


def kept_slots(scores: Tensor, share: float) -> Tensor:
    """`kept_positions` of every row of a batch, int64 [B, n]. Rows that keep fewer slots get the last position again,
    which never counts and which no other slot looks at."""
    found = [kept_positions(row, share) for row in scores]
    most, last = max(map(len, found)), scores.shape[1] - 1
    return torch.stack([torch.cat([one, one.new_full((most - len(one),), last)]) for one in found])


def _pad(x: Tensor, length: int) -> Tensor:
    return torch.cat([x, x.new_zeros(length - len(x), x.shape[1])])


def _corpus(samples: Sequence[MultimodalSample]) -> Corpus:
    longest = max(len(sample.tokens) for sample in samples)
    tokens = torch.zeros(len(samples), longest, dtype=torch.long)
    mask = torch.zeros(len(samples), longest, dtype=torch.bool)
    for row, sample in enumerate(samples):
        if not 0 < sample.prompt < len(sample.tokens) - 1:
            raise InputError(f"sample {row}: an answer of at least two tokens behind a prompt is needed")
        tokens[row, : len(sample.tokens)] = torch.tensor(sample.tokens)
        mask[row, : len(sample.tokens)] = sample.counts()
    return Corpus(tokens, mask, torch.tensor([len(sample.tokens) for sample in samples]))
