"""The perplexity protocol, agreement and decoding speed against their definitions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from dfrot.errors import InputError
from dfrot.evaluate import logits as logits_module
from dfrot.evaluate import ppl
from dfrot.evaluate.baseline import Baseline
from dfrot.evaluate.divergence import agreement_observer
from dfrot.evaluate.intervals import perplexity_interval
from dfrot.evaluate.speed import decode_speed
from dfrot.runtime.load import load, load_model

WINDOWS = torch.randint(0, 256, (5, 17), generator=torch.Generator().manual_seed(0))


def _set_tile(monkeypatch: pytest.MonkeyPatch, rows: int, columns: int) -> None:
    monkeypatch.setattr(logits_module, "ROWS", rows)
    monkeypatch.setattr(logits_module, "COLUMNS", columns)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("tile", [(1, 7), (5, 100), (1024, 1024)])
def test_losses_are_those_of_the_definition(
    source: Path, batch: int, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_tile(monkeypatch, *tile)
    model = load_model(source)
    done: list[int] = []
    losses = ppl.window_losses(model, WINDOWS, batch, done.append)
    with torch.no_grad():
        logits = model(WINDOWS).logits
    for window, rows, loss in zip(WINDOWS, logits, losses):
        expected = functional.cross_entropy(rows[:-1].double(), window[1:])
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert done[-1] == len(WINDOWS)
    assert perplexity_interval(losses)[0] == pytest.approx(float(losses.mean().exp()), rel=1e-6)


def test_broken_weights_are_an_error_not_a_number(source: Path) -> None:
    model = load_model(source)
    model.lm_head.weight.data[3, 3] = float("nan")
    with pytest.raises(InputError, match="window 0"):
        ppl.window_losses(model, WINDOWS)


@pytest.mark.parametrize("tile", [(3, 19), (1024, 1024)])
def test_agreement_with_oneself_and_with_another(
    source: Path, packed: Path, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_tile(monkeypatch, *tile)
    model = load_model(source)
    baseline = Baseline(model)
    ppl.window_losses(model, WINDOWS, 2, observe=baseline.record)
    baseline.finish()
    observe, same = agreement_observer(model, baseline, WINDOWS)
    ppl.window_losses(model, WINDOWS, 3, observe=observe)
    assert float(same.kl.abs().max()) < 1e-6
    assert float(same.top1.min()) == 1.0
    other = load_model(packed)
    observe, apart = agreement_observer(other, baseline, WINDOWS)
    ppl.window_losses(other, WINDOWS, 2, observe=observe)
    with torch.no_grad():
        p, q = (m(WINDOWS).logits[:, :-1].double().log_softmax(-1) for m in (model, other))
    expected = (p.exp() * (p - q)).sum(-1).mean(-1)
    assert torch.allclose(apart.kl, expected, rtol=1e-3)
    assert torch.allclose(apart.top1, (p.argmax(-1) == q.argmax(-1)).double().mean(-1), atol=0.07)


def test_decode_speed_counts_tokens(packed: Path) -> None:
    model, tokenizer = load(packed)
    assert decode_speed(model, tokenizer, tokens=3, prompt=4, repeats=1) > 0
