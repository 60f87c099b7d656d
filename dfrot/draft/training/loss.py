"""The training loss: the draft's distribution against the target's, and two imitations of its features.

    loss = l_f SmoothL1(r(s^), r(s)) + l_m SmoothL1(r(mid^), r(mid)) + sum_t gamma^t KL_t,    r(x) = x / rms(x)

A draft with a vocabulary of its own imitates the target's distribution restricted to it and renormalised. Acceptance
(agreement, ranks and mass) is counted against the whole distribution: a token that the draft cannot say is never agreed
on. The loss has no part that takes the target's token alone, so no position needs to be left out.

KL is KL(target || draft), summed over the vocabulary and averaged over slots. (The published trainer averages it over
the vocabulary, which divides it by V and leaves little but the regression.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dfrot.draft.models.base import Draft, Head, TrainOutput
from dfrot.draft.training.settings import LossWeights
from dfrot.draft.training.target_features import TargetFeatures
from dfrot.generation.speculation.acceptance_rates import RANKS

CHUNK_BYTES = 256 << 20  # of float32 logits at a time; more than one chunk is computed again in the backward pass
RMS_EPSILON = 1e-6


@dataclass
class Losses:
    """Losses of one batch, and how well the draft proposes."""

    total: Tensor
    """The loss, differentiable."""
    feature: float
    """The imitation of the last feature, before its weight."""
    mid: float
    """The imitation of the intermediate feature, before its weight."""
    kl: list[float]
    """KL per step of the training-time test, in nats."""
    agreement: list[float]
    """Per step, the share of slots at which draft and target have the same likeliest token."""
    ranks: list[list[float]] = field(default_factory=list)
    """By step and rank of the draft's tokens: how often the target's likeliest token is that one. Empty where not
    counted."""
    mass: list[list[float]] = field(default_factory=list)
    """By step and rank of the draft's tokens: the target's mean probability of that token. Empty where not counted."""

    @property
    def simulated_tau(self) -> float:
        """The acceptance length that these agreements promise."""
        return simulated_tau(self.agreement)


def simulated_tau(agreement: list[float]) -> float:
    """Tokens per verify pass of a chain: 1 + sum over k of the product of the agreements up to step k."""
    tau, product = 1.0, 1.0
    for share in agreement:
        product *= share
        tau += product
    return tau


def slots_of_step(mask: Tensor, t: int) -> Tensor:
    """bool [B, S]: slots p such that p - t .. p all count, so that drafting could have reached p from p - t."""
    out = mask.clone()
    for back in range(1, t + 1):
        out[:, back:] &= mask[:, :-back]
        out[:, :back] = False
    return out


def normalised(x: Tensor) -> Tensor:
    """x / rms(x) over the last dimension, in float32 or wider: a few massive rows must not decide the loss."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + RMS_EPSILON)


@dataclass
class Teacher:
    """The target's distribution at n slots."""

    p: Tensor
    """float32 [n, V], probabilities."""
    negentropy: Tensor
    """float32 [n], sum of p log p."""
    top: Tensor
    """int64 [n], the likeliest tokens."""

    @classmethod
    def of(cls, logits: Tensor) -> Teacher:
        """From logits [n, V]."""
        log_p = logits.float().log_softmax(-1)
        p = log_p.exp()
        return cls(p, (p * log_p).sum(-1), logits.argmax(-1))

    def rows(self, index: Tensor) -> Teacher:
        """Some of the slots: index bool [n]."""
        return Teacher(self.p[index], self.negentropy[index], self.top[index])

    def divergence(self, student: Tensor) -> Tensor:
        """KL(target || draft) in nats per row [n], from the draft's logits [n, V]."""
        wide = student.float()
        return self.negentropy + wide.logsumexp(-1) - (self.p * wide).sum(-1)


class _Divergences:
    """KL sums per step of the training-time test, and counts of agreement, chunk by chunk of slots."""

    def __init__(
        self,
        draft: Draft,
        features: TargetFeatures,
        kept: list[Tensor],
        head: Head,
        count_agreement: bool,
        sparse: bool = False,
        own_head: Head | None = None,
    ) -> None:
        """kept: per step bool [B, S], the slots that count. count_agreement: whether to compare draft tokens. sparse:
        compute logits at the slots that count only, which pays where a step has few of them. own_head: as in
        `losses`."""
        self.draft, self.features, self.kept, self.head = draft, features, kept, head
        self.draft_head, self.ids = own_head or draft.own_head(head), draft.token_ids
        self.count_agreement, self.sparse = count_agreement, sparse
        device, steps = features.last.device, len(kept)
        self.kl_sums = [torch.zeros((), device=device) for _ in range(steps)]
        # [0]: how often a draft token is the target's likeliest; [1]: the target's probability of it
        self.rank_sums = torch.zeros(2, steps, min(RANKS, draft.config.proposed_size), device=device)

    def add(self, slots: Tensor, outputs: list[Tensor]) -> None:
        """Add the slots [n, 2] (row, position) of a batch; outputs: of the draft per step, [B, S, d]."""
        chunk_rows = max(1, CHUNK_BYTES // (4 * self.draft.config.vocab_size))
        chunks = torch.split(slots, chunk_rows)
        for chunk in chunks:
            if len(chunks) > 1 and torch.is_grad_enabled():
                sums = checkpoint(self._of_chunk, chunk, *outputs, use_reentrant=False)
            else:
                sums = self._of_chunk(chunk, *outputs)
            for t, kl_sum in enumerate(sums):
                self.kl_sums[t] = self.kl_sums[t] + kl_sum

    def _of_chunk(self, chunk: Tensor, *outputs: Tensor) -> list[Tensor]:
        """KL sums of a chunk per step."""
        b, s = chunk.T
        with torch.no_grad():
            # of the tokens that the draft can propose: the target's distribution restricted to them, renormalised
            if self.ids is not None and not self.count_agreement:
                imitated = teacher = Teacher.of(self.draft_head(self.features.last[b, s]))
            else:
                logits = self.head(self.features.last[b, s])
                teacher = Teacher.of(logits)
                imitated = teacher if self.ids is None else Teacher.of(logits[..., self.ids])
        sums = []
        for t, output in enumerate(outputs):
            counts = self.kept[t][b, s]
            if self.sparse:
                student, own = self.draft.logits(output[b[counts], s[counts]], self.draft_head), imitated.rows(counts)
                divergence = own.divergence(student)
            else:
                student = self.draft.logits(output[b, s], self.draft_head)
                divergence, student = imitated.divergence(student)[counts], student[counts]
            if self.count_agreement:
                tokens = student.topk(self.rank_sums.shape[-1]).indices
                tokens = tokens if self.ids is None else self.ids[tokens]
                self.rank_sums[0, t] += (tokens == teacher.top[counts][:, None]).sum(0)
                self.rank_sums[1, t] += teacher.p[counts].gather(1, tokens).sum(0)
            sums.append(divergence.sum())
        return sums


def losses(
    draft: Draft,
    out: TrainOutput,
    features: TargetFeatures,
    mask: Tensor,
    head: Head,
    weights: LossWeights,
    count_agreement: bool = True,
    counts_of: Callable[[Sequence[int]], list[int]] = list,
    own_head: Head | None = None,
) -> Losses:
    """Losses of one batch.

    Args:
        draft: the draft, for its config and head.
        out: what it computed.
        features: of the target, at the draft's slots.
        mask: bool [B, S], slots that count.
        head: the target's, without gradients of its own.
        weights: of the terms.
        count_agreement: also compare draft tokens, which is slow on a CPU.
        counts_of: from counts of slots here to those of the whole batch, by which sums are divided. Where other
            processes compute parts of the batch, losses and gradients of all parts then add up to those of the batch.
        own_head: the target's head, cut to the draft's tokens; None cuts the logits of `head`.
    """
    feature = mid = torch.zeros((), device=features.last.device)
    kept = [slots_of_step(mask, t) for t in range(len(out.outputs))]
    if out.reached is not None:
        kept = [slots & reached for slots, reached in zip(kept, out.reached)]
    counts = [max(count, 1) for count in counts_of([int(slots.sum()) for slots in [mask, *kept]])]
    if draft.config.arch == "dream" and weights.feature:
        feature = _imitation(draft.imitation(out.outputs[0]), features.last, mask, counts[0])
    if features.mid is not None and out.mid is not None and weights.mid:
        mid = _imitation(out.mid, features.mid, mask, counts[0])
    divergences = _Divergences(draft, features, kept, head, count_agreement, out.reached is not None, own_head)
    divergences.add((mask if out.reached is None else torch.stack(kept).any(0)).nonzero(), out.outputs)
    kl = [total / count for total, count in zip(divergences.kl_sums, counts[1:])]
    total = weights.feature * feature + weights.mid * mid
    for t, term in enumerate(kl):
        total = total + weights.kl * weights.decay**t * term
    step_counts = torch.tensor(counts[1:], device=features.last.device)[:, None]
    ranks, mass = (divergences.rank_sums / step_counts).tolist()
    return Losses(
        total,
        float(feature.detach()),
        float(mid.detach()),
        [float(term.detach()) for term in kl],
        [step[0] for step in ranks],
        *((ranks, mass) if count_agreement else ()),
    )


def _imitation(own: Tensor, theirs: Tensor, mask: Tensor, count: int) -> Tensor:
    """Mean SmoothL1 between normalised features [B, S, d] at the slots of `mask`, of which there are `count` in the
    whole batch."""
    total = F.smooth_l1_loss(normalised(own[mask]), normalised(theirs[mask]), reduction="sum")
    return total / (count * own.shape[-1])


def mean_losses(batches: list[Losses]) -> Losses:
    """Plain mean over batches."""
    count = len(batches)
    steps = range(len(batches[0].kl))
    return Losses(
        torch.stack([batch.total.detach() for batch in batches]).mean(),
        sum(batch.feature for batch in batches) / count,
        sum(batch.mid for batch in batches) / count,
        [sum(batch.kl[t] for batch in batches) / count for t in steps],
        [sum(batch.agreement[t] for batch in batches) / count for t in steps],
        _mean_tables([batch.ranks for batch in batches]),
        _mean_tables([batch.mass for batch in batches]),
    )


def _mean_tables(tables: list[list[list[float]]]) -> list[list[float]]:
    return [[sum(cells) / len(cells) for cells in zip(*step)] for step in zip(*tables)]
