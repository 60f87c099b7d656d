"""dfq bench generate on a tiny shape: every scheme runs, results have their schema, the peer is optional."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dfrot.bench.models import generate, peer
from dfrot.bench.settings import GenerateBenchSettings
from dfrot.errors import ResourceError

QUICK: dict[str, Any] = {"prefill": 16, "decode": 2, "repeats": 1}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(peer, "PAUSE", 0.0)


def test_results_have_their_schema() -> None:
    result = generate.bench_generate("tiny", peer=False, with_memory=False, **QUICK)
    assert json.loads(json.dumps(result)) == result
    assert list(result["results"]) == list(GenerateBenchSettings.schemes)
    for entry in result["results"].values():
        assert entry["prefill_per_s"] == pytest.approx(16 / entry["prefill"]["median"])
        assert entry["decode_per_s"] == pytest.approx(1 / entry["decode"]["median"])
        assert entry["memory"] is None
    assert result["machine"]["threads"] == 1


def test_a_demanded_peer_that_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "have_llama_cpp", lambda: False)
    with pytest.raises(ResourceError, match=r"pip install 'dfq\[bench\]'"):
        generate.bench_generate("tiny", peer=True, **QUICK)


def test_ratios_compare_with_the_peer() -> None:
    def result(seconds: float, peak: int) -> dict[str, Any]:
        timing = {"median": seconds, "best": seconds, "spread": 0.0, "samples": 1}
        return {"prefill": timing, "decode": timing, "memory": {"peak": peak, "model": peak}}

    results = {"w4a8kv4": result(1.0, 10), generate.PEER: result(2.0, 20)}
    generate._add_ratios(results)
    assert results["w4a8kv4"]["ratio"]["decode"] == 2.0
    assert results["w4a8kv4"]["ratio"]["peak_memory"] == 0.5
    assert "ratio" not in results[generate.PEER]


def test_llama_cpp_runs_beside_ours() -> None:
    if not generate.have_llama_cpp():
        pytest.skip("the extra 'bench' is not installed")
    result = generate.bench_generate("tiny", ["w4a8kv4"], peer=True, with_memory=False, **QUICK)
    assert set(result["results"]) == {"w4a8kv4", generate.PEER}
    assert {"prefill", "decode"} <= result["results"]["w4a8kv4"]["ratio"].keys()


def test_the_command() -> None:
    from dfrot_cli.main import main

    options = ["--shape", "tiny", "--schemes", "w4a8kv4", "--no-peer", "--no-memory", "--prefill", "8", "--decode", "1"]
    ran = CliRunner().invoke(main, ["bench", "generate", *options, "--repeats", "1"])
    assert ran.exit_code == 0, ran.output
    assert "w4a8kv4" in ran.stdout
    plan = CliRunner().invoke(main, ["bench", "generate", *options, "--plan", "--json"])
    assert json.loads(plan.stdout)["settings"]["shape"] == "tiny"
    bad = CliRunner().invoke(main, ["bench", "generate", "--shape", "900b"])
    assert bad.exit_code == 2
