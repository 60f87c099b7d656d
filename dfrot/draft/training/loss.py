"""The training loss: what the draft says against what the target says, and two imitations of its features.

    loss = l_f SmoothL1(r(s^), r(s)) + l_m SmoothL1(r(mid^), r(mid)) + sum_t gamma^t KL_t,    r(x) = x / rms(x)

KL is target against draft, summed over the vocabulary and averaged over slots. (The published trainer averages it
over the vocabulary, which divides it by V and leaves little but regression.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dfrot.draft.models.base import Draft, Head, TrainOutput
from dfrot.draft.training.settings import Weights
from dfrot.draft.training.target_features import TargetFeatures
from dfrot.generation.acceptance_rates import RANKS

CHUNK_BYTES = 256 << 20  # of float32 logits at a time; more than one chunk is computed again in the backward pass


@dataclass
class Losses:
    """total is differentiable; the rest are plain numbers: per step KL (nats) and share of agreeing argmaxes. Where
    they were counted, by step and rank of the draft's guesses: how often the target's argmax is that guess (`ranks`),
    and the target's mean probability of it (`mass`)."""

    total: Tensor
    feature: float
    mid: float
    kl: list[float]
    agreement: list[float]
    ranks: list[list[float]] = field(default_factory=list)
    mass: list[list[float]] = field(default_factory=list)

    @property
    def simulated_tau(self) -> float:
        """Tokens per verify pass that these agreements promise: 1 + sum over k of their product up to k."""
        return simulated_tau(self.agreement)


def simulated_tau(agreement: list[float]) -> float:
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
    """x / rms(x) over the last dimension, float32 or wider: a few massive rows must not decide the loss."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)


@dataclass
class Teacher:
    """What the target says at some slots: probabilities float32 [n, V], sum of p log p [n], argmax int64 [n]."""

    p: Tensor
    negentropy: Tensor
    top: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Teacher:
        log_p = logits.float().log_softmax(-1)
        p = log_p.exp()
        return cls(p, (p * log_p).sum(-1), logits.argmax(-1))

    def divergence(self, student: Tensor) -> Tensor:
        """KL(target || draft) in nats per row [n], summed over the vocabulary, from the draft's logits [n, V]."""
        wide = student.float()
        return self.negentropy + wide.logsumexp(-1) - (self.p * wide).sum(-1)


def losses(
    draft: Draft,
    out: TrainOutput,
    given: TargetFeatures,
    mask: Tensor,
    head: Head,
    weights: Weights,
    count_agreement: bool = True,
    counts_of: Callable[[Sequence[int]], list[int]] = list,
) -> Losses:
    """Loss of one batch. mask bool [B, S]: slots that count (all slots are present: positions 0 .. S - 1).

    head: the target's, without gradients of its own. count_agreement: also compare guesses (slow on a CPU).
    counts_of: counts of slots here -> those of the whole batch, which sums are divided by, where others compute
    parts of it: then losses and gradients of all parts add up to those of the batch."""
    device = given.last.device
    feature = mid = torch.zeros((), device=device)
    steps = len(out.outputs)
    kept = [slots_of_step(mask, t) for t in range(steps)]
    counts = [max(count, 1) for count in counts_of([int(one.sum()) for one in [mask, *kept]])]
    if draft.config.arch == "dream" and weights.feature:
        feature = _imitation(out.outputs[0], given.last, mask, counts[0])
    if given.mid is not None and out.mid is not None and weights.mid:
        mid = _imitation(out.mid, given.mid, mask, counts[0])
    rows = max(1, CHUNK_BYTES // (4 * draft.config.vocab_size))
    where = mask.nonzero()
    sums = [torch.zeros((), device=device) for _ in range(steps)]
    standing = torch.zeros(2, steps, min(RANKS, draft.config.vocab_size), device=device)  # how often, and the mass

    def of_rows(chunk: Tensor, *outputs: Tensor) -> list[Tensor]:
        b, s = chunk.T
        with torch.no_grad():
            teacher = Teacher.of(head(given.last[b, s]))
        found = []
        for t, output in enumerate(outputs):
            student, here = draft.logits(output[b, s], head), kept[t][b, s]
            if count_agreement:
                guesses = student[here].topk(standing.shape[-1]).indices
                standing[0, t] += (guesses == teacher.top[here][:, None]).sum(0)
                standing[1, t] += teacher.p[here].gather(1, guesses).sum(0)
            found.append(teacher.divergence(student)[here].sum())
        return found

    chunks = torch.split(where, rows)
    for chunk in chunks:
        if len(chunks) > 1 and torch.is_grad_enabled():
            found = checkpoint(of_rows, chunk, *out.outputs, use_reentrant=False)
        else:
            found = of_rows(chunk, *out.outputs)
        for t, total in enumerate(found):
            sums[t] = sums[t] + total
    kl = [total / count for total, count in zip(sums, counts[1:])]
    total = weights.feature * feature + weights.mid * mid
    for t, term in enumerate(kl):
        total = total + weights.kl * weights.decay**t * term
    ranks, mass = (standing / torch.tensor(counts[1:], device=device)[:, None]).tolist()
    return Losses(
        total,
        float(feature.detach()),
        float(mid.detach()),
        [float(term.detach()) for term in kl],
        [step[0] for step in ranks],
        *((ranks, mass) if count_agreement else ()),
    )


def _imitation(own: Tensor, theirs: Tensor, mask: Tensor, count: int) -> Tensor:
    """Mean SmoothL1 between normalised features [B, S, d] at the slots of `mask`, of which there are `count`."""
    found = F.smooth_l1_loss(normalised(own[mask]), normalised(theirs[mask]), reduction="sum")
    return found / (count * own.shape[-1])
