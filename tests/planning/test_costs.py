"""Plans of costs: bytes against what the stages write, what grows with what, machines by name, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError, UnsupportedError
from dfrot.planning.estimate import estimate, stage_costs
from dfrot.planning.machines import MACHINES, rates_of
from dfrot.planning.ranks import seconds_on
from dfrot.planning.this_machine import measure_rates
from dfrot.planning.unread import unread_checkpoint
from dfrot.planning.work import KINDS
from dfrot.quant.scheme import QuantScheme
from dfrot.quant.table import TableScheme
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings
from dfrot_cli.main import main

LLAMA70B: dict[str, Any] = {
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
MIXTRAL: dict[str, Any] = {
    **LLAMA70B,
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
PIPELINE = {"rotate": RotateSettings(), "calibrate": CalibrateSettings(), "quantize": QuantizeSettings()}


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def tensor_bytes(folder: Path) -> int:
    return sum(entry.end - entry.start for entry in Checkpoint.open(folder).entries.values())


@pytest.mark.parametrize("tied", [False, True])
def test_the_described_tensors_are_those_of_the_folder(small_llama: Callable[..., Path], tied: bool) -> None:
    folder = small_llama(tie_word_embeddings=tied)
    checkpoint, _, notes = unread_checkpoint(config_of(folder), "config.json")
    real = Checkpoint.open(folder)
    assert {name: (e.shape, e.dtype) for name, e in checkpoint.entries.items()} == {
        name: (e.shape, e.dtype) for name, e in real.entries.items()
    }
    assert notes == []


def test_disk_is_what_the_stages_write(small_llama: Callable[..., Path], text_file: Path, tmp_path: Path) -> None:
    folder = small_llama()
    stages: dict[str, Any] = {
        "rotate": RotateSettings(dataset=str(text_file), seqlen=64, steps=2, transform_windows=1),
        "calibrate": CalibrateSettings(str(text_file), samples=2, seqlen=32),
        "quantize": QuantizeSettings(QuantScheme.parse("w4a4kv4"), embed=TableScheme(8), head=TableScheme(8)),
    }
    costs, notes = stage_costs(config_of(folder), "config.json", stages)
    assert notes == []
    rotate(folder, tmp_path / "rotated", stages["rotate"])
    calibrate(tmp_path / "rotated", tmp_path / "calibration", stages["calibrate"])
    quantize(tmp_path / "rotated", tmp_path / "calibration", tmp_path / "packed", stages["quantize"])
    rotated, calibrated, packed = costs
    assert packed.disk == tensor_bytes(tmp_path / "packed")
    extras = sum(tensor_size(tmp_path / "rotated" / name) for name in ("rotation", "transforms"))
    assert rotated.disk == tensor_bytes(tmp_path / "rotated") + extras
    assert calibrated.disk == sum(tensor_size(file) for file in (tmp_path / "calibration").glob("*.safetensors"))


def tensor_size(stem: Path) -> int:
    from dfrot.checkpoint import read_header

    return sum(entry.end - entry.start for entry in read_header(stem.with_suffix(".safetensors")).values())


def test_a_70b() -> None:
    costs, _ = stage_costs(LLAMA70B, "config.json", PIPELINE)
    rotated, _, packed = costs
    assert rotated.disk == pytest.approx(141.1e9, rel=0.01)
    assert packed.disk == pytest.approx(38.4e9, rel=0.01)
    assert packed.memory < 60e9
    assert packed.flops > 1e17


def test_experts_see_their_share_of_the_tokens() -> None:
    dense = {key: value for key, value in MIXTRAL.items() if "experts" not in key} | {"model_type": "llama"}
    (mixture,), (plain,) = (
        stage_costs(config, "config.json", {"eval": PerplexitySettings(windows=4)})[0] for config in (MIXTRAL, dense)
    )
    assert 1.5 < mixture.flops / plain.flops < 2.1
    assert mixture.work["read"] > 6 * plain.work["read"]


@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "num_key_value_heads"]
)
def test_larger_models_cost_more(key: str) -> None:
    larger = {**LLAMA70B, key: 2 * LLAMA70B[key]}
    for small, large in zip(*(stage_costs(config, "config.json", PIPELINE)[0] for config in (LLAMA70B, larger))):
        assert large.flops >= small.flops
        assert large.disk >= small.disk
        assert large.memory >= small.memory
        assert large.work["read"] >= small.work["read"]


def test_more_samples_cost_more() -> None:
    few, many = (
        stage_costs(LLAMA70B, "c", {**PIPELINE, "calibrate": CalibrateSettings(samples=count)})[0]
        for count in (16, 128)
    )
    assert many[2].flops > few[2].flops
    assert many[2].scratch == 8 * few[2].scratch


def test_settings_that_save_work() -> None:
    quick = replace(PIPELINE["quantize"], algorithm="rtn", effort="quick", key_shift="none")  # type: ignore[type-var]
    full, rounded = (
        stage_costs(LLAMA70B, "c", {"quantize": settings})[0][0] for settings in (PIPELINE["quantize"], quick)
    )
    assert rounded.flops < full.flops / 100
    alone = RotateSettings(method="hadamard", dataset=None, gate=False, transform=("none",))
    refined, plain = (stage_costs(LLAMA70B, "c", {"rotate": settings})[0][0] for settings in (RotateSettings(), alone))
    assert plain.flops < refined.flops
    calibrated, tokens = (
        stage_costs(LLAMA70B, "c", {"calibrate": settings})[0][0]
        for settings in (CalibrateSettings(), CalibrateSettings(statistics=False))
    )
    assert tokens.disk < calibrated.disk / 1000


@pytest.mark.parametrize("name", ["H100", "8xH100", "2xepyc-9654"])
def test_named_machines(name: str) -> None:
    rates, words = rates_of(name)
    assert set(rates) == set(KINDS)
    assert all(rate > 0 for rate in rates.values())
    assert words.startswith(name[0] if "x" in name[:2] else "1")


def test_several_devices_are_faster_and_share_a_disk() -> None:
    one, eight = rates_of("H100")[0], rates_of("8xH100")[0]
    assert 6 < eight["products32"] / one["products32"] < 8
    assert eight["read"] == one["read"]


@pytest.mark.parametrize("name", ["H101", "8x", "0xH100", "", "eightxH100"])
def test_unknown_machines_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError) as caught:
        rates_of(name)
    assert caught.value.fields == ("on",)
    assert all(known in str(caught.value) for known in MACHINES)
    assert "\n" not in str(caught.value)


def test_this_machine_is_timed() -> None:
    rates = measure_rates()
    assert set(rates) == set(KINDS)
    assert all(rate > 0 for rate in rates.values())
    assert rates["products32"] > rates["factor64"] / 10


def test_what_the_architecture_refuses() -> None:
    with pytest.raises(UnsupportedError, match="is unknown"):
        stage_costs({"model_type": "nobody"}, "config.json", PIPELINE)
    with pytest.raises(InputError, match="hidden_size"):
        stage_costs({**LLAMA70B, "hidden_size": -1}, "config.json", PIPELINE)


def test_an_estimate_adds_up(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA70B))
    plan = estimate(tmp_path / "config.json", PIPELINE, "H200")
    rows = plan["stages"]
    assert plan["total"]["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    assert all(row["seconds"] == pytest.approx(sum(row["seconds_by_kind"].values())) for row in rows)
    assert plan["total"]["memory_bytes"] == max(row["memory_bytes"] for row in rows)
    assert plan["total"]["peak_disk_bytes"] >= plan["total"]["disk_bytes"]
    assert json.loads(json.dumps(plan)) == plan
    assert "hours" not in estimate(tmp_path / "config.json", PIPELINE, None)["total"]


def test_the_command_needs_no_weights(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(LLAMA70B))
    more = ["--model", "llama3-70b", "--config", str(tmp_path / "c.json"), "--plan", "--out", str(tmp_path / "out")]
    for name in ("rotate", "calibrate", "quantize"):
        ran = CliRunner().invoke(main, [name, *more, "--on", "8xH100", "--json"])
        assert ran.exit_code == 0, ran.output
        plan = json.loads(ran.stdout)
        assert [row["stage"] for row in plan["stages"]] == [name]
        assert plan["total"]["hours"] > 0
    ran = CliRunner().invoke(main, ["rotate", *more, "--on", "8xH100"])
    assert "141.77 GB" in ran.output
    ran = CliRunner().invoke(main, ["rotate", *more, "--on", "H101"])
    assert ran.exit_code == 2
    assert "nearest: H100" in ran.stderr
    ran = CliRunner().invoke(main, ["rotate", *more[:4], *more[5:]])
    assert ran.exit_code == 2
    assert "belongs to --plan" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_here_is_asked_for_its_config_alone(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, ["rotate", "--model", "llama3-70b", "--plan", "--out", str(tmp_path / "out")])
    assert ran.exit_code == 2
    assert "its config.json is not here and cannot be fetched; give the file as --config" in ran.stderr


def test_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(LLAMA70B))
    (tmp_path / "r.yaml").write_text(
        "name: big\nmodel: llama3-70b\ndataset: wikitext2\nrotate:\n  method: dfrot\ncalibrate:\n  samples: 16\n"
        "quantize:\n  scheme: w4a4kv4\neval:\n  seqlen: 2048\n"
    )
    ran = CliRunner().invoke(
        main, ["run", str(tmp_path / "r.yaml"), "--plan", "--on", "H100", "--config", str(tmp_path / "c.json")]
    )
    assert ran.exit_code == 0, ran.output
    for name in ("rotate", "calibrate", "quantize", "eval", "together"):
        assert name in ran.output


def test_ranks_share_what_has_units_and_pay_for_what_travels() -> None:
    costs, _ = stage_costs(LLAMA70B, "config.json", {**PIPELINE, "eval": PerplexitySettings()})
    rates, _ = rates_of("H100")
    for cost in costs:
        alone = seconds_on(cost, rates, 1, 25.0)
        assert alone["seconds"] == pytest.approx(sum(amount / rates[kind] for kind, amount in cost.work.items()))
        assert alone["network"] == 0
        assert alone["alone"] >= 0
        two, many = (seconds_on(cost, rates, ranks, 1e9) for ranks in (2, 1000))
        assert alone["alone"] + alone["shared"] / 2 <= two["alone"] + two["shared"] < alone["seconds"]
        assert many["shared"] < two["shared"], cost.stage
        slow, fast = (seconds_on(cost, rates, 2, gigabits)["network"] for gigabits in (1.0, 100.0))
        assert slow > fast or cost.stage == "eval", "losses are a few numbers"
