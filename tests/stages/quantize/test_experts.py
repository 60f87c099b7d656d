"""Mixtures of experts: each expert's Hessian from its own tokens, all the way to a packed model that generates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.arch import open_described
from dfrot.calib.calibration import Calibration
from dfrot.checkpoint import Checkpoint
from dfrot.draft.models.build import build as build_draft
from dfrot.draft.models.build import config_for
from dfrot.errors import UnsupportedError
from dfrot.export.source import open_source
from dfrot.export.targets import TARGETS
from dfrot.files import write_json
from dfrot.generation.output import StopCriteria
from dfrot.generation.plain import plain
from dfrot.generation.sampling import Sampling
from dfrot.generation.speculation.loop import speculative
from dfrot.generation.speculation.tree import TreeShape
from dfrot.generation.target import Target
from dfrot.outliers.measure.subject import Subject
from dfrot.quant.config import DfqConfig
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.block_runner import BlockRunner
from dfrot.runtime.load import load_model
from dfrot.stages.calibrate.merge import merge
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.evaluate.perplexity import evaluate
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings

Build = Callable[..., Path]
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2},
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "num_hidden_layers": 2},
}
EXPERT = "model.layers.1.block_sparse_moe.experts"


def settings(scheme: str = "w4a4kv4", **changes: Any) -> QuantizeSettings:
    return QuantizeSettings(QuantScheme.parse(scheme), **changes)


def codes(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.read(name) for name in checkpoint.entries if name.endswith("weight_packed")}


@pytest.fixture(scope="module")
def model(build: Build, rewrite: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture one expert of which hardly any token is sent to."""
    folder = build(
        tmp_path_factory.mktemp("model"), "mixtral", online=True, num_hidden_layers=2, num_local_experts=8,
        num_experts_per_tok=2, dtype=torch.float32,
    )  # fmt: skip
    name = "model.layers.1.block_sparse_moe.gate.weight"
    router = Checkpoint.open(folder).read(name).clone()
    router[5] = 0  # at least two of seven others score above zero, almost always
    rewrite(folder, **{name.replace(".", "__"): router})
    return folder


@pytest.fixture(scope="module")
def cal(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stage") / "cal"
    calibrate(model, out, CalibrateSettings(str(text), samples=8, seqlen=48))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_from_a_folder_to_generated_text(build: Build, text: Path, tmp_path: Path, kind: str) -> None:
    source = build(tmp_path / "source", kind, **KINDS[kind])
    rotate(source, tmp_path / "rotated", RotateSettings("hadamard", None))
    calibrate(tmp_path / "rotated", tmp_path / "cal", CalibrateSettings(str(text), samples=8, seqlen=64))
    for name, changes in {"w4a4kv4": {}, "w4a16": {}, "fake": {"fake": True}}.items():
        scheme = settings("w4a4kv4" if name == "fake" else name, **changes)
        quantize(tmp_path / "rotated", tmp_path / "cal", tmp_path / name, scheme)
    models = [source, tmp_path / "w4a4kv4", tmp_path / "fake", tmp_path / "w4a16"]
    results = evaluate(models, PerplexitySettings(str(text), seqlen=48, windows=4, kl=True))["results"]
    _, packed, fake, weights = results
    assert packed["perplexity"] == pytest.approx(fake["perplexity"], rel=1e-3)
    assert 0 < weights["kl"] < packed["kl"] < 1
    for name in ("w4a4kv4", "w4a16"):
        loaded = load_model(tmp_path / name, "float32")
        prompt = torch.arange(3, 20)[None]
        out = loaded.generate(prompt, max_new_tokens=5, do_sample=False)
        with torch.no_grad():
            assert torch.equal(loaded(out, use_cache=False).logits[:, 16:-1].argmax(-1), out[:, 17:])
        target, draft = Target(loaded), build_draft(config_for(open_described(source)[1], "dream"))
        expected = plain(target, prompt[0].tolist(), StopCriteria(24), Sampling()).tokens
        assert expected[:5] == out[0, 17:].tolist()
        for shape in (TreeShape(3), TreeShape(4, 3, 10)):
            assert (
                speculative(target, draft, prompt[0].tolist(), StopCriteria(24), Sampling(), shape).tokens == expected
            )
    loaded.save_pretrained(tmp_path / "again")
    assert set(Checkpoint.open(tmp_path / "again").entries) == set(Checkpoint.open(tmp_path / "w4a16").entries)


def test_statistics_are_those_of_the_tokens_that_were_sent(model: Path, cal: Path) -> None:
    checkpoint, arch = open_described(model)
    opened = Calibration.open(cal, arch, checkpoint.digest())
    runner = BlockRunner(checkpoint, arch)
    hidden = runner.run(runner.block(0), runner.embed(opened.tokens()))
    block = runner.block(1)
    inputs: dict[str, torch.Tensor] = {}
    for name in ("block_sparse_moe.gate", "block_sparse_moe.experts.2.w2.linear"):
        block.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    runner.run(block, hidden)
    x = inputs["block_sparse_moe.gate"].reshape(-1, arch.hidden)
    chosen = (x @ checkpoint.read("model.layers.1.block_sparse_moe.gate.weight").float().T).topk(2).indices
    stats = opened.stats("layer-00001")
    for expert in range(8):
        mine = x[(chosen == expert).any(-1)]
        tap_stats = stats[f"block_sparse_moe.experts.{expert}.w1"]
        assert tap_stats.count == len(mine)
        assert tap_stats.hessian is not None
        torch.testing.assert_close(tap_stats.hessian, 2 / max(len(mine), 1) * mine.T @ mine, rtol=1e-4, atol=1e-5)
    inner = inputs["block_sparse_moe.experts.2.w2.linear"]
    torch.testing.assert_close(stats["block_sparse_moe.experts.2.w2"].absmax, inner.abs().amax(0))
    assert sum(stats[f"block_sparse_moe.experts.{e}.w1"].count for e in range(8)) == 2 * len(x)


def test_chunks_give_the_same_statistics_and_clips(
    model: Path, cal: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfrot.calib.taps.CHUNK_BYTES", 1)
    calibrate(model, tmp_path / "cal", CalibrateSettings(str(text), samples=8, seqlen=48))
    checkpoint, arch = open_described(model)
    at_once, parts = (
        Calibration.open(path, arch, checkpoint.digest()).stats("layer-00001") for path in (cal, tmp_path / "cal")
    )
    for tap, stats_of_tap in at_once.items():
        other = parts[tap]
        assert stats_of_tap.count == other.count, tap
        assert torch.equal(stats_of_tap.moments[:1], other.moments[:1]), "as many rows in the sample"
        assert int((stats_of_tap.histogram - other.histogram).abs().sum()) <= 0.02 * int(
            stats_of_tap.histogram.sum()
        ), tap
        torch.testing.assert_close(stats_of_tap.absmax, other.absmax, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stats_of_tap.hessian, other.hessian, rtol=1e-3, atol=1e-4)
    quantize(model, cal, tmp_path / "q", settings(algorithm="rtn", a_clip="auto"))
    config = DfqConfig.of(Checkpoint.open(tmp_path / "q").config)
    assert config is not None
    assert {name for name in config.a_clips if ".experts." in name}, "experts have clips of their own"


@pytest.mark.parametrize("propagate", [True, False])
def test_an_expert_with_too_few_tokens_is_rounded_and_said(
    model: Path, cal: Path, tmp_path: Path, propagate: bool
) -> None:
    record = quantize(model, cal, tmp_path / "q", settings(propagate=propagate))
    assert set(record["fallbacks"]) >= {f"{EXPERT}.5.{name}" for name in ("w1", "w2", "w3")}
    assert all("calibration tokens" in reason for reason in record["fallbacks"].values())
    assert all(record["linears"][name]["algorithm"] == "rtn" for name in record["fallbacks"])
    assert record["linears"][f"{EXPERT}.2.w1"]["algorithm"] == "gptq"
    assert len(record["linears"]) == 2 * (4 + 8 * 3)


@pytest.mark.parametrize("changes", [{"compensate": 0.0}, {"compensate": 0.5, "sink_tokens": 3}])
def test_chunks_share_passes_and_agree(
    model: Path, cal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    kept = settings(keep=("lm_head", "model.layers.0.*"), **changes)
    quantize(model, cal, tmp_path / "whole", kept)
    monkeypatch.setattr("dfrot.calib.taps.CHUNK_BYTES", 1)
    monkeypatch.setattr("dfrot.stages.quantize.propagate.MOMENT_BYTES", 3 * 16 * 48**2)
    quantize(model, cal, tmp_path / "chunked", kept)
    at_once, chunked = codes(tmp_path / "whole"), codes(tmp_path / "chunked")
    assert set(at_once) == set(chunked)
    differing = sum(int((at_once[name] != chunked[name]).sum()) for name in at_once)
    assert differing < 0.02 * sum(value.numel() for value in at_once.values())


def test_sinks_stay_exact_for_the_experts_too(model: Path, tmp_path: Path) -> None:
    """In the running model and in the simulation that GPTQ takes its Hessians from."""
    tokens = torch.randint(0, 250, (2, 20), generator=torch.Generator().manual_seed(0))
    quantize(model, None, tmp_path / "q", settings("w16a4", sink_tokens=4))
    quantize(model, None, tmp_path / "all", settings("w16a4", sink_tokens=20))
    with torch.no_grad():
        exact, measured, every = (
            load_model(folder)(tokens).logits for folder in (model, tmp_path / "q", tmp_path / "all")
        )
    error = (measured - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert float(error[:, :4].max()) < 1e-4 < float(error[:, 4:].min())
    assert float((every - exact).norm() / exact.norm()) < 1e-4


def test_calibrations_merge_also_where_an_expert_saw_nothing(model: Path, text: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        calibrate(model, tmp_path / f"{seed}", CalibrateSettings(str(text), samples=1, seqlen=3, seed=seed))
    taps = merge(model, [tmp_path / "0", tmp_path / "1"], tmp_path / "both")["taps"]
    summaries = [taps[f"{EXPERT}.{expert}.w1"] for expert in range(8)]
    assert sum(summary["rows"] for summary in summaries) == 2 * 6
    assert {summary["p99"] for summary in summaries if not summary["rows"]} == {0.0}


def test_what_does_not_know_mixtures_says_so(model: Path, tmp_path: Path) -> None:
    plain = Checkpoint.open(model)
    write_json(tmp_path / "config.json", {k: v for k, v in plain.config.items() if k != "quantization_config"})
    (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    for target in TARGETS.values():
        with pytest.raises(UnsupportedError, match="mixture of experts is exported to no format"):
            open_source(tmp_path, target)
    with pytest.raises(UnsupportedError, match="mixture of experts"):
        Subject(tmp_path)
