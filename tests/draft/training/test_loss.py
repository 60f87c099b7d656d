"""The training loss: divergence, what counts, agreement by rank."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dfrot.draft.models.base import TrainOutput
from dfrot.draft.training.loss import Teacher, losses, simulated_tau, slots_of_step
from dfrot.draft.training.settings import LossWeights
from dfrot.draft.training.target_features import TargetFeatures


def test_divergence_is_summed_over_the_vocabulary() -> None:
    teacher, student = torch.randn(5, 30), torch.randn(5, 30, requires_grad=True)
    ours = Teacher.of(teacher).divergence(student)
    p = torch.distributions.Categorical(logits=teacher)
    q = torch.distributions.Categorical(logits=student)
    assert torch.allclose(ours, torch.distributions.kl_divergence(p, q), atol=1e-5)
    ours.sum().backward()
    assert torch.allclose(student.grad, student.softmax(-1) - teacher.softmax(-1), atol=1e-5)
    padded = torch.cat([teacher, torch.full((5, 7), -1e4)], -1), torch.cat([student, torch.full((5, 7), -1e4)], -1)
    assert torch.allclose(Teacher.of(padded[0]).divergence(padded[1]), ours, atol=1e-4)


def test_loss_ignores_slots_that_do_not_count(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    draft, weight = kit.random_draft(), torch.randn(kit.vocab, 64)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 3:] = mask[1, 5:7] = True
    outputs = [torch.randn(2, 9, 64) for _ in range(3)]
    features = TargetFeatures(torch.randn(2, 9, 64), torch.randn(2, 9, 64))

    def head(x: torch.Tensor) -> torch.Tensor:
        return x @ weight.T

    result = losses(draft, TrainOutput(outputs, outputs[0]), features, mask, head, LossWeights())
    changed = [out.where(mask[..., None], torch.randn(2, 9, 64)) for out in outputs]
    again = losses(draft, TrainOutput(changed, changed[0]), features, mask, head, LossWeights())
    assert torch.allclose(result.total, again.total)
    assert slots_of_step(mask, 1)[1].nonzero().flatten().tolist() == [6]
    monkeypatch.setattr("dfrot.draft.training.loss.CHUNK_BYTES", 4 * kit.vocab * 3)
    leaves = [out.clone().requires_grad_() for out in outputs]
    chunked = losses(draft, TrainOutput(leaves, leaves[0]), features, mask, head, LossWeights())
    assert torch.allclose(chunked.total, result.total, atol=1e-5)
    chunked.total.backward()
    assert leaves[2].grad is not None
    assert bool((leaves[2].grad.abs().sum(-1) > 0)[slots_of_step(mask, 2)].all())


@torch.no_grad()
def test_draft_tokens_are_counted_by_rank(kit: SimpleNamespace) -> None:
    """By hand: how often the target's argmax is the draft's token of each rank, and its mean probability of it."""
    draft, weight = kit.random_draft(), torch.randn(kit.vocab, 64)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 3:] = mask[1, 5:8] = True
    last = torch.randn(2, 9, 64)
    outputs = [last + spread * torch.randn(2, 9, 64) for spread in (0.5, 2.0)]
    outcome = TrainOutput(outputs, None)
    result = losses(draft, outcome, TargetFeatures(last), mask, lambda x: x @ weight.T, LossWeights())
    teacher = last @ weight.T
    for t, output in enumerate(outputs):
        order = (output @ weight.T).argsort(-1, descending=True)
        counts = slots_of_step(mask, t)
        for rank in range(4):
            token = order[..., rank]
            accepted = (token == teacher.argmax(-1))[counts].float().mean()
            mass = teacher.softmax(-1).gather(-1, token[..., None])[..., 0][counts].mean()
            assert result.ranks[t][rank] == pytest.approx(float(accepted), abs=1e-6)
            assert result.mass[t][rank] == pytest.approx(float(mass), abs=1e-5)
    assert result.agreement == [step[0] for step in result.ranks]
    assert 0 < result.agreement[1] < result.agreement[0] <= 1
    uncounted = losses(
        draft, TrainOutput(outputs, None), TargetFeatures(last), mask, lambda x: x @ weight.T, LossWeights(), False
    )
    assert uncounted.ranks == uncounted.mass == []


def test_simulated_tau() -> None:
    assert simulated_tau([]) == 1
    assert simulated_tau([0.5, 0.5]) == 1.75
