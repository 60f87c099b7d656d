"""The perplexity protocol against its definition, and `evaluate` from folders to the result."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from dfrot.errors import GateError, InputError, MismatchError
from dfrot.evaluate import ppl
from dfrot.evaluate.baseline import Baseline
from dfrot.evaluate.divergence import agreement_observer
from dfrot.evaluate.speed import decode_speed
from dfrot.quant.config import DfqConfig
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load, load_model
from dfrot.stages.evaluate.perplexity import evaluate
from dfrot.stages.evaluate.settings import PerplexitySettings

WINDOWS = torch.randint(0, 256, (5, 17), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, kit: SimpleNamespace) -> Path:
    return kit.add_tokenizer(kit.build(tmp_path_factory.mktemp("evaluate") / "source"))


@pytest.fixture(scope="module")
def packed(source: Path, kit: SimpleNamespace) -> Path:
    return kit.pack(source, source.parent / "packed", DfqConfig(QuantScheme.parse("w4a4kv4")))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(3)
    letters = "".join(chr(97 + int(i)) for i in torch.randint(0, 26, (330,), generator=generator))
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(letters)
    return file


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("limit", [1, 1 << 26])
def test_losses_are_those_of_the_definition(
    source: Path, batch: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppl, "LOGIT_BYTES", limit)  # 1: a position at a time
    model = load_model(source)
    done: list[int] = []
    losses = ppl.window_losses(model, WINDOWS, batch, done.append)
    with torch.no_grad():
        logits = model(WINDOWS).logits
    for window, rows, loss in zip(WINDOWS, logits, losses):
        expected = functional.cross_entropy(rows[:-1].double(), window[1:])
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert done[-1] == len(WINDOWS)
    assert ppl.perplexity(model, WINDOWS) == pytest.approx(float(losses.mean().exp()), rel=1e-6)


def test_broken_weights_are_an_error_not_a_number(source: Path) -> None:
    model = load_model(source)
    model.lm_head.weight.data[3, 3] = float("nan")
    with pytest.raises(GateError, match="window 0"):
        ppl.window_losses(model, WINDOWS)


def test_agreement_with_oneself_and_with_another(source: Path, packed: Path) -> None:
    model = load_model(source)
    baseline = Baseline(model)
    ppl.window_losses(model, WINDOWS, 2, observe=baseline.record)
    baseline.finish()
    observe, same = agreement_observer(model, baseline, len(WINDOWS))
    ppl.window_losses(model, WINDOWS, 3, observe=observe)
    assert float(same.kl.abs().max()) < 1e-6
    assert float(same.top1.min()) == 1.0
    other = load_model(packed)
    observe, apart = agreement_observer(other, baseline, len(WINDOWS))
    ppl.window_losses(other, WINDOWS, 2, observe=observe)
    with torch.no_grad():
        p, q = (m(WINDOWS).logits[:, :-1].double().log_softmax(-1) for m in (model, other))
    expected = (p.exp() * (p - q)).sum(-1).mean(-1)
    assert torch.allclose(apart.kl, expected, rtol=1e-3)
    assert torch.allclose(apart.top1, (p.argmax(-1) == q.argmax(-1)).double().mean(-1), atol=0.07)


def test_evaluate_compares_checkpoints(source: Path, packed: Path, text: Path) -> None:
    settings = PerplexitySettings(dataset=str(text), seqlen=32, batch=3, kl=True, decode=2, threads=1)
    seen: list[tuple[str, int, int]] = []
    report = evaluate([source, packed], settings, lambda *event: seen.append(event))
    first, second = report["results"]
    json.dumps(report, allow_nan=False)
    assert first["windows"] == 10  # 330 characters and a BOS: ten windows of 32, the tail dropped
    assert first["tokens"] == 320
    assert first["ratio_to_first"] == 1.0
    assert first["kl"] == 0.0
    assert second["kl"] > 0.01
    assert 0 <= second["top1"] <= 1
    assert second["ratio_to_first"] == pytest.approx(second["perplexity"] / first["perplexity"])
    assert second["ratio_ci"][0] < second["ratio_to_first"] < second["ratio_ci"][1]
    assert second["ci"][0] < second["perplexity"] < second["ci"][1]
    assert second["bytes_on_disk"] < 0.6 * first["bytes_on_disk"]
    assert second["scheme"] == "w4a4kv4"
    assert second["decode_tokens_per_second"] > 0
    assert first["protocol"]["id"] == second["protocol"]["id"]
    assert first["protocol"]["bos"].startswith("once")
    assert first["protocol"]["windows_in_text"] == 10
    assert ("evaluate packed", 10, 10) in seen


def test_real_and_simulated_agree(packed: Path, text: Path) -> None:
    settings = PerplexitySettings(dataset=str(text), seqlen=64)
    real = evaluate([packed], settings)["results"][0]
    fake = evaluate([packed], PerplexitySettings(dataset=str(text), seqlen=64, fake=True))["results"][0]
    assert fake["fake"]
    assert not real["fake"]
    assert fake["perplexity"] == real["perplexity"]


def test_protocol_id_depends_on_what_was_measured(source: Path, text: Path) -> None:
    def protocol(**options: object) -> str:
        settings = PerplexitySettings(**{"dataset": str(text), "seqlen": 64, "windows": 2, **options})  # type: ignore[arg-type]
        return str(evaluate([source], settings)["results"][0]["protocol"]["id"])

    base = protocol()
    assert base == protocol(batch=1)
    assert len({base, protocol(windows=3), protocol(seqlen=32), protocol(dtype="bfloat16")}) == 4


def test_refusals(source: Path, packed: Path, text: Path, kit: SimpleNamespace, tmp_path: Path) -> None:
    settings = PerplexitySettings(dataset=str(text), seqlen=32)
    import shutil

    other = tmp_path / "other"
    shutil.copytree(source, other)
    kit.add_tokenizer(other, "zyxwvutsrqponmlkjihgfedcba")
    with pytest.raises(MismatchError, match="tokenizer"):
        evaluate([source, other], settings)
    kit.add_tokenizer(other, bos=False)
    with pytest.raises(MismatchError, match="tokenizer"):
        evaluate([source, other], settings)
    with pytest.raises(InputError, match="no checkpoint"):
        evaluate([], settings)
    with pytest.raises(InputError, match="too short"):
        evaluate([source], PerplexitySettings(dataset=str(text), seqlen=4096))
    with pytest.raises(InputError, match="windows"):
        evaluate([source], PerplexitySettings(dataset=str(text), seqlen=32, windows=0))
    (other / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="truncated"):
        evaluate([packed, other], settings)


def test_decode_speed_counts_tokens(packed: Path) -> None:
    model, tokenizer = load(packed)
    assert decode_speed(model, tokenizer, tokens=3, prompt=4, repeats=1) > 0
