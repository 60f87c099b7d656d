"""The divergence of a student's predictions from a teacher's, and its gradient, a few rows of logits at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.evaluate.logits import TiledHead

LOGIT_BYTES = 1 << 25  # float32 logits of a model at a time


def rows_at_a_time(vocabulary: int) -> int:
    """Rows whose logits are in memory together."""
    return max(1, LOGIT_BYTES // (4 * vocabulary))


def divergence(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """(KL(teacher || student) float32 [M] in nats, its gradient to the student's logits float32 [M, V]) of logits
    float32 [M, V]; those of the teacher are overwritten.

    With p, q the softmax of teacher and student: KL = sum p (t - s) - lse(t) + lse(s), gradient q - p."""
    p, q = teacher.softmax(-1), student.softmax(-1)
    # the log-sum-exp from the largest entry, whose probability is exp(largest - lse)
    normalizers = [logits.amax(-1) - values.amax(-1).log() for logits, values in ((teacher, p), (student, q))]
    mean_difference = torch.linalg.vecdot(p, teacher.sub_(student))
    return mean_difference - normalizers[0] + normalizers[1], q.sub_(p)


def accumulate(teacher: TiledHead, student: TiledHead, exact: Tensor, hidden: Tensor, share: float) -> float:
    """Mean divergence, in nats per token, behind the heads' inputs `exact` and `hidden` [M, d] of teacher and student.

    Where `hidden` requires a gradient, `share` times that of the mean is added to everything that `hidden` depends on
    and to what learns in the student's head."""
    learns = hidden.requires_grad and torch.is_grad_enabled()
    leaf = hidden.detach().requires_grad_(learns)
    step, sums = rows_at_a_time(student.vocabulary), []
    for rows, expected in zip(torch.split(leaf, step), torch.split(exact, step)):
        logits = student.logits(rows)
        with torch.no_grad():
            values, gradient = divergence(teacher.logits(expected), logits.detach())
        sums.append(values)
        if learns:
            logits.backward(gradient.mul_(share / len(hidden)))  # type: ignore[no-untyped-call]
    if learns:
        hidden.backward(leaf.grad)  # type: ignore[no-untyped-call]
    return float(torch.cat(sums).mean())
