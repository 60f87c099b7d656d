"""dfq eval ppl: `evaluate` from folders to the result."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dfrot.errors import InputError, MismatchError
from dfrot.stages.evaluate.perplexity import evaluate
from dfrot.stages.evaluate.settings import PerplexitySettings


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
