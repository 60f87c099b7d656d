"""Tiles of logits, and what is accumulated over them, against whole logits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfrot.errors import MismatchError
from dfrot.evaluate import logits as logits_module
from dfrot.evaluate.baseline import Baseline
from dfrot.evaluate.divergence import TokenDivergence, divergence_observer
from dfrot.evaluate.logits import LikeliestTokens, RunningLogSumExp, TiledHead, token_losses

VOCABULARY, WIDTH = 50, 8


class WholeRows(nn.Linear):
    """A head that is not a plain linear, as a quantized one."""


def model(head: nn.Module, **config: Any) -> Any:
    text = SimpleNamespace(vocab_size=VOCABULARY, **config)
    return SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: text), get_output_embeddings=lambda: head, device="cpu"
    )


def head(kind: type[nn.Linear] = nn.Linear, vocabulary: int = VOCABULARY, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return kind(WIDTH, vocabulary).requires_grad_(False)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits_module, "ROWS", 5)
    monkeypatch.setattr(logits_module, "COLUMNS", 7)


def rows(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)) * 4


@pytest.mark.parametrize("kind", [nn.Linear, WholeRows])
@pytest.mark.parametrize("config", [{}, {"final_logit_softcapping": 2.0, "logits_scaling": 3.0}])
def test_tiles_are_the_logits(kind: type[nn.Linear], config: dict[str, float]) -> None:
    hidden = rows(4)
    tiles = dict(TiledHead(model(head(kind), **config)).tiles(hidden))
    assert list(tiles) == [*range(0, VOCABULARY, 7)]
    expected = head()(hidden)
    if config:
        expected = torch.tanh(expected / 3 / 2) * 2
    torch.testing.assert_close(torch.cat([*tiles.values()], 1), expected)


def test_a_head_of_whole_rows_computes_few_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits_module, "LOGIT_BYTES", 4 * VOCABULARY * 2)
    assert TiledHead(model(head(WholeRows))).rows == 2
    assert TiledHead(model(head())).rows == 5
    hidden, targets = rows(11), torch.arange(11)
    torch.testing.assert_close(
        token_losses(model(head(WholeRows)), hidden, targets), token_losses(model(head()), hidden, targets)
    )


def test_the_sum_survives_extreme_values() -> None:
    values = torch.tensor([[-1e4, 3.0, 1e4, 9999.0], [-torch.inf, -torch.inf, 1.0, -torch.inf]])
    total = RunningLogSumExp(2, values.device)
    for column in values.split(1, 1):
        total.add(column)
    torch.testing.assert_close(total.value(), values.double().logsumexp(-1))


def test_the_first_of_equal_tokens_is_the_likeliest() -> None:
    values = torch.tensor([[1.0, 5.0, 5.0, 2.0], [0.0, -1.0, 0.0, 0.0], [-3.0, -2.0, -1.0, 7.0]])
    likeliest = LikeliestTokens(3, values.device)
    for begin in (0, 2):
        likeliest.add(begin, values[:, begin : begin + 2])
    assert likeliest.tokens.tolist() == [1, 0, 3]


def observed(ours: nn.Linear, theirs: nn.Linear, windows: Tensor, hidden: Tensor) -> TokenDivergence:
    baseline, result = Baseline(model(ours)), TokenDivergence.empty(*windows.shape)
    baseline.record(0, hidden)
    divergence_observer(model(theirs), baseline, windows, result)(0, hidden)
    return result


def test_divergence_is_that_of_the_definition() -> None:
    windows, hidden = torch.randint(0, VOCABULARY, (3, 6)), rows(18).view(3, 6, WIDTH)
    ours, theirs = head(), head(seed=5)
    result = observed(ours, theirs, windows, hidden)
    p, q = (module(hidden[:, :-1]).double().log_softmax(-1) for module in (ours, theirs))
    torch.testing.assert_close(result.kl.double(), (p.exp() * (p - q)).sum(-1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.same, (p.argmax(-1) == q.argmax(-1)).float())
    change = (q.exp() - p.exp()).gather(-1, windows[:, 1:, None])[..., 0]
    torch.testing.assert_close(result.change.double(), change, rtol=1e-4, atol=1e-6)


def test_other_vocabularies_are_refused() -> None:
    windows, hidden = torch.zeros(1, 4, dtype=torch.long), rows(4)[None]
    with pytest.raises(MismatchError, match="50 and 43 tokens"):
        observed(head(), head(vocabulary=43), windows, hidden)
