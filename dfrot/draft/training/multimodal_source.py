"""Prompts with images: which image tokens the draft sees, and samples to train on.

The target sees every image token; of the draft's slots only the share that the prompt itself looks at most is kept
(DREAM, section 3.3; the published code never runs its pruning). Positions do not move, and the cross-attention still
reaches every feature. Scores come from the rows behind the last image of the prompt alone, in training as in serving.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dfrot.draft.feature_selection import ROWS_AT_A_TIME, FeatureChooser, FeatureSelection, capped
from dfrot.draft.training.corpus import Corpus
from dfrot.errors import InputError
from dfrot.generation.target import Target, TargetFeatures

KEEP = 0.75
TRAINED = (0.5, 0.75, 1.0)  # shares of image tokens that training draws from


class ImageAttentionProbe:
    """How much the prompt's text looks at each image token, from the attention of one of the target's last layers.

    tokens int64 [n]: of the prompt. layer: the last whose rows see everything before them. scores float32 [image
    tokens]: mean over heads and rows behind the last image."""

    def __init__(self, tokens: Tensor, image_token: int, layer: int) -> None:
        self.columns = (tokens == image_token).nonzero().flatten()
        if not len(self.columns):
            raise InputError("the prompt holds no image token; give the processor's ids, or leave the images out")
        first = int(self.columns[-1]) + 1
        self.rows = torch.arange(min(first, len(tokens) - 1), len(tokens))
        self.count, self.layer = len(tokens), layer
        self.scores = torch.zeros(len(self.columns))

    def observe(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float,
        causal: bool,
        cap: float | None = None,
    ) -> None:
        """Look on (dfrot/runtime/attention_hooks.py): query [1, H, n, D], key [1, Hkv, n, D] of the prompt's pass.
        These rows are text, which is causal whatever images are."""
        if layer != self.layer:
            return
        heads, kv_heads = query.shape[1], key.shape[1]
        keys, places = key[0].float().transpose(-1, -2).unsqueeze(1), torch.arange(self.count)
        for rows in torch.split(self.rows, ROWS_AT_A_TIME):
            part = query[0].reshape(kv_heads, heads // kv_heads, query.shape[2], -1)[:, :, rows].float()
            hidden = places > rows[:, None]
            if mask is not None and mask.dtype == torch.bool:  # a window
                hidden = hidden | ~mask[0, 0, rows]
            weights = capped((part @ keys) * scale, cap).masked_fill(hidden, -torch.inf).softmax(-1)
            self.scores += weights[..., self.columns].sum((0, 1, 2)) / (heads * len(self.rows))

    def spread(self) -> Tensor:
        """float32 [n]: scores at the image tokens' positions, -1 elsewhere."""
        found = torch.full((self.count,), -1.0)
        found[self.columns] = self.scores
        return found

    def kept(self, share: float) -> Tensor:
        """`kept_positions` of this prompt."""
        return kept_positions(self.spread(), share)


def kept_positions(scores: Tensor, share: float) -> Tensor:
    """Positions int64 that stay slots, rising, from scores float32 [n], negative for text, which stays: of every image
    (a run of its tokens) the best ceil(share * tokens)."""
    if not 0 <= share <= 1:
        raise InputError(f"visual tokens kept: {share} is not a share between 0 and 1")
    stays, columns = scores < 0, (scores >= 0).nonzero().flatten()
    breaks = (columns.diff() > 1).nonzero().flatten() + 1
    for run in torch.tensor_split(columns, breaks.tolist()):
        stays[run[scores[run].topk(math.ceil(share * len(run))).indices]] = True
    return stays.nonzero().flatten()


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
