"""dfq bench generate on a tiny shape: every scheme runs, results have their schema, the peer is optional."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dfrot.arch import describe
from dfrot.bench.models import generate, gguf_file, memory, peer
from dfrot.bench.models.presets import PRESETS, preset
from dfrot.bench.models.random_model import random_checkpoint
from dfrot.bench.settings import GenerateBenchSettings
from dfrot.errors import InputError, ResourceError

QUICK: dict[str, Any] = {"prefill": 16, "decode": 2, "repeats": 1}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(peer, "PAUSE", 0.0)


def test_results_have_their_schema() -> None:
    result = generate.bench_generate("tiny", peer=False, with_memory=False, **QUICK)
    assert json.loads(json.dumps(result)) == result
    assert list(result["results"]) == list(GenerateBenchSettings.schemes)
    for one in result["results"].values():
        assert one["prefill_per_s"] == pytest.approx(16 / one["prefill"]["median"])
        assert one["decode_per_s"] == pytest.approx(1 / one["decode"]["median"])
        assert one["memory"] is None
    assert result["machine"]["threads"] == 1


@pytest.mark.parametrize("scheme", ["w4a8kv4", "w4a16-g64", "w4a4kv4-wasym"])
def test_random_checkpoints_compute_finite_logits(tmp_path: Path, scheme: str) -> None:
    from dfrot.runtime.load import load_model

    model = load_model(random_checkpoint(tmp_path / "model", preset("tiny"), scheme))
    logits = model(torch.arange(12)[None]).logits
    assert bool(torch.isfinite(logits).all())
    assert float(logits.float().std()) > 0.1


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        random_checkpoint(tmp_path / name, preset("tiny"), "w4a8kv4", seed=3)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_presets_are_consistent_models() -> None:
    for name in PRESETS:
        arch = describe(preset(name))
        assert arch.n_heads * arch.head_dim == arch.hidden
    with pytest.raises(InputError, match="unknown"):
        preset("900b")


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


def test_memory_of_a_process_of_its_own(tmp_path: Path) -> None:
    if not memory.STATUS.is_file():
        pytest.skip("this system does not report resident memory")
    folder = random_checkpoint(tmp_path / "model", preset("tiny"), "w4a8kv4")
    used = memory.measure_memory("dfq", folder, tmp_path / "memory.json", threads=1, prefill=8, decode=1)
    assert used["peak"] >= used["loaded"] >= used["imported"] > 10 << 20
    assert used["model"] == used["peak"] - used["imported"]


def test_gguf_holds_every_tensor_at_four_bits(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    arch = describe(preset("tiny"))
    reader = gguf.GGUFReader(gguf_file.write_random_gguf(tmp_path / "peer.gguf", arch))
    shapes = dict(gguf_file.tensor_shapes(arch))
    assert {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors} == shapes
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert all(kind == ("F32" if len(shapes[name]) == 1 else "Q4_0") for name, kind in kinds.items())


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
