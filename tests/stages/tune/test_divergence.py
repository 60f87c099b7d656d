"""The divergence of logits and its gradient, against autograd."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dfrot.evaluate.logits import TiledHead
from dfrot.stages.tune import divergence


def head(seed: int, **config: Any) -> TiledHead:
    torch.manual_seed(seed)
    module = nn.Linear(16, 50, bias=False).requires_grad_(False)
    text = SimpleNamespace(**config)
    return TiledHead(
        SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text), get_output_embeddings=lambda: module)
    )


@pytest.mark.parametrize("config", [{}, {"logits_scaling": 3.0}, {"final_logit_softcapping": 2.0}])
def test_it_is_what_autograd_finds(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "LOGIT_BYTES", 4 * 50 * 4)  # four rows at a time
    teacher, student = head(0, **config), head(1, **config)
    exact, source = torch.randn(11, 16) * 3, (torch.randn(11, 16) * 3).requires_grad_()
    value = divergence.accumulate(teacher, student, exact, source * 2, 0.25)
    again = source.detach().clone().requires_grad_()
    expected, actual = teacher.logits(exact).log_softmax(-1), student.logits(again * 2).log_softmax(-1)
    mean = (expected.exp() * (expected - actual)).sum(-1).mean()
    (mean * 0.25).backward()
    assert value == pytest.approx(float(mean), rel=1e-5)
    assert source.grad is not None
    assert again.grad is not None
    assert torch.allclose(source.grad, again.grad, atol=1e-6)


def test_without_gradients_nothing_is_added() -> None:
    rows = torch.randn(5, 16, requires_grad=True)
    with torch.no_grad():
        assert divergence.accumulate(head(0), head(1), rows.detach(), rows, 1.0) > 0
    assert rows.grad is None
