"""`dfq quantize --budget`: some inputs are read in 8 bits, the mean stays within the budget, and it pays."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError, UnsupportedError
from dfrot.export.inspect import inspect
from dfrot.export.run import export
from dfrot.outliers.measure.subject import Subject
from dfrot.quant.config import DfqConfig
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.evaluate.inputs import open_checkpoints
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings

Build = Callable[..., Path]
TOKENS = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(3))


def settings(budget: float | None, scheme: str = "w4a4kv4", **changes: Any) -> QuantizeSettings:
    return QuantizeSettings(QuantScheme.parse(scheme), budget=budget, **{"algorithm": "rtn", **changes})


def config_of(folder: Path) -> DfqConfig:
    config = DfqConfig.of(Checkpoint.open(folder).config)
    assert config is not None
    return config


def test_the_mean_stays_within_the_budget(model: Path, cal: Path, tmp_path: Path) -> None:
    record = quantize(model, cal, tmp_path / "q", settings(5.5))
    budget, config = record["budget"], config_of(tmp_path / "q")
    rows = budget["inputs"]
    weights = Checkpoint.open(model)
    for row in rows:
        assert row["products"] == sum(math.prod(weights.entry(f"{name}.weight").shape) for name in row["linears"])
        assert row["costs"]["8"] < row["costs"]["4"]
    products = sum(row["products"] for row in rows)
    mean = sum(row["products"] * row["bits"] for row in rows) / products
    assert budget["mean"] == pytest.approx(mean, abs=1e-4)
    assert 4 < mean <= budget["bits"] == 5.5
    smallest = min(row["products"] for row in rows if row["bits"] == 4)
    assert mean + 4 * smallest / products > 5.5, "no other input would have fitted"
    raised = {name for row in rows if row["bits"] == 8 for name in row["linears"]}
    assert config.a_bits == dict.fromkeys(raised, 8)
    assert config.a_clips == dict.fromkeys(raised, 1.0)
    for layer in range(2):
        shared = [f"model.layers.{layer}.self_attn.{name}_proj" for name in "qkv"]
        assert len(raised.intersection(shared)) in (0, 3)
    assert inspect(tmp_path / "q")["activations"].endswith(f"; {len(raised)} linears in 8 bits")
    (opened,) = open_checkpoints([tmp_path / "q"])
    assert opened.notes(16) == [f"activations beside its scheme: inputs of {len(raised)} linears in 8 bits"]


@pytest.mark.parametrize("algorithm", ["rtn", "gptq"])
def test_more_bits_diverge_less(
    model: Path, cal: Path, tmp_path: Path, algorithm: str, divergence: Callable[..., float]
) -> None:
    costs = []
    for budget in (None, 5, 6.5, 8):
        quantize(model, cal, tmp_path / str(budget), settings(budget, "w8a3kv8", algorithm=algorithm))
        costs.append(divergence(tmp_path / str(budget), model, TOKENS))
    assert costs == sorted(costs, reverse=True)
    assert costs[3] < 0.1 * costs[0]


def test_it_runs_natively_and_as_simulated(model: Path, cal: Path, tmp_path: Path) -> None:
    for name, fake in (("packed", False), ("fake", True)):
        quantize(model, cal, tmp_path / name, settings(5.5, fake=fake, sink_tokens=0))
    packed = load_model(tmp_path / "packed", torch.float32)
    linears = [module for module in packed.modules() if isinstance(module, QuantLinear)]
    assert {(linear.plan.a_bits, linear.plan.a_clip) for linear in linears} == {(4, 0.85), (8, 1.0)}
    with torch.no_grad():
        expected = packed(TOKENS, use_cache=False).logits
        assert torch.equal(load_model(tmp_path / "fake", torch.float32)(TOKENS).logits, expected)
        cache = packed(TOKENS[:1, :20], use_cache=True).past_key_values
        packed(TOKENS[:1, 20:21], past_key_values=cache, use_cache=True)
    report = packed.dfq_native.report()
    assert report["unfit"] is None or report["unfit"].startswith("no native library")
    assert report["steps"] == 0 if report["unfit"] else report["steps"] > 0
    subject = Subject(tmp_path / "packed")
    hidden = subject.runner.embed(TOKENS[:1])
    for layer in range(subject.arch.n_layers):
        hidden = subject.runner.run(subject.block(layer), hidden, subject.cache(layer))
    assert float((subject.runner.logits(hidden) - expected[:1]).abs().mean()) < 0.3 * float(expected.std())


def test_clips_of_raised_inputs(model: Path, cal: Path, tmp_path: Path) -> None:
    quantize(model, cal, tmp_path / "all", settings(5.5, a_clip=0.9))
    config = config_of(tmp_path / "all")
    assert config.a_bits
    assert config.a_clips == {}
    record = quantize(model, cal, tmp_path / "auto", settings(5.5, a_clip="auto"))
    config = config_of(tmp_path / "auto")
    clips = {config.activations_of(name).a_clip for name in config.a_bits}
    others = {
        config.activations_of(name).a_clip
        for row in record["budget"]["inputs"]
        if row["bits"] == 4
        for name in row["linears"]
    }
    assert min(clips) > min(others)


def test_without_a_budget_nothing_changes(model: Path, cal: Path, tmp_path: Path) -> None:
    record = quantize(model, cal, tmp_path / "q", settings(None))
    assert "budget" not in record
    assert "budget" not in record["request"]["settings"]
    assert "a_bits" not in Checkpoint.open(tmp_path / "q").config["quantization_config"]


def test_refusals_before_work(model: Path, cal: Path, build: Build, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"budget 4.5 needs a `calibration`"):
        quantize(model, None, tmp_path / "no", settings(4.5))
    with pytest.raises(UnsupportedError, match="`budget` 4: is no more than the activations of `scheme` w4a4kv4 have"):
        settings(4)
    with pytest.raises(UnsupportedError, match="w4a16 have"):
        settings(5, "w4a16")
    with pytest.raises(InputError, match="budget"):
        settings(9)
    with pytest.raises(UnsupportedError, match="`effort` quick reads no calibration"):
        settings(5, effort="quick")
    blocks = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    with pytest.raises(UnsupportedError, match="no linear of the blocks is quantized"):
        quantize(model, cal, tmp_path / "no", settings(5, keep=blocks))
    mixture = build(tmp_path / "mixture", "mixtral", num_local_experts=2, num_experts_per_tok=1)
    calibrate(mixture, tmp_path / "cal", CalibrateSettings(str(text), 2, 16))
    with pytest.raises(UnsupportedError, match="a mixture of experts"):
        quantize(mixture, tmp_path / "cal", tmp_path / "no", settings(5))
    assert not (tmp_path / "no").exists()


def test_exports_carry_weights_alone(build: Build, text: Path, tmp_path: Path) -> None:
    source = build(tmp_path / "plain", intermediate_size=64, num_key_value_heads=4)
    calibrate(source, tmp_path / "cal", CalibrateSettings(str(text), 2, 32))
    quantize(source, tmp_path / "cal", tmp_path / "q", settings(5, "w4a4-g32-sym"))
    with pytest.raises(UnsupportedError, match="linears in other bits than the rest, which no export holds yet"):
        export(tmp_path / "q", "compressed-tensors", tmp_path / "no")
    export(tmp_path / "q", "compressed-tensors", tmp_path / "weights", QuantScheme.parse("w4a16-g32"))
