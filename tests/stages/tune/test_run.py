"""dfq tune: the packed model before the first step, integers that stay, state that resumes, bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM

from dfrot.arch import describe
from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError, MismatchError, UnsupportedError
from dfrot.hub import resolve_model
from dfrot.quant.modules.rotated_linear import hadamard
from dfrot.quant.scheme import QuantScheme
from dfrot.quant.table import TableScheme
from dfrot.rotation.hadamard import hadamard_plan
from dfrot.runtime import trainable_attention
from dfrot.runtime.load import load_model
from dfrot.runtime.trainable import TrainableModel
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings
from dfrot.stages.tune.run import tune
from dfrot.stages.tune.settings import TuneSettings
from dfrot.stages.tune.trainer import STATE_FILE
from dfrot_cli.main import main

QUICK = TuneSettings(dataset="stdlib", steps=4, batch=1, seqlen=64, held_out=2, evaluations=2)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    rotate(
        resolve_model("reference"), folder / "rotated", RotateSettings(method="hadamard", dataset="stdlib", gate=False)
    )
    for name, scheme, sinks in (("packed", "w4a4kv4", 0), ("groups", "w3a8-g64-wasym", 0), ("sinks", "w4a4kv4", 3)):
        settings = QuantizeSettings(scheme=QuantScheme.parse(scheme), algorithm="rtn", sink_tokens=sinks, a_clip=1.0)
        quantize(folder / "rotated", None, folder / name, settings)
    quantize(resolve_model("reference"), None, folder / "fp4", QuantizeSettings(QuantScheme.parse("mxfp4"), "rtn"))
    ends = QuantizeSettings(
        scheme=QuantScheme.parse("w4a4kv4"), algorithm="rtn", embed=TableScheme(8), head=TableScheme(8, 256)
    )
    quantize(folder / "rotated", None, folder / "ends", ends)
    return folder


@pytest.mark.parametrize("name", ["packed", "groups", "sinks", "fp4"])
def test_before_the_first_step_it_is_the_packed_model(packed: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainable_attention, "fast_bfloat16", lambda: False)  # float32, as in the packed model
    config = Checkpoint.open(packed / name).config
    ids = torch.arange(7, 47)[None]
    expected = load_model(packed / name, dtype=torch.float32)(ids, output_hidden_states=True)
    student = TrainableModel(load_model(packed / name, dtype=torch.float32), describe(config), torch.bfloat16)
    actual = student.model(ids, use_cache=False, output_hidden_states=True)
    close = {"sinks": ("first",)}.get(name, ("first", "logits"))  # later a last bit may have changed a code
    for part in close:
        ours, theirs = ((x.hidden_states[1] if part == "first" else x.logits) for x in (actual, expected))
        assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.std())), part
    logits = actual.logits
    stored = Checkpoint.open(packed / name)
    for tensor, value in student.tensors().items():
        assert torch.equal(value, stored.read(tensor)), tensor
    logits.square().mean().backward()
    for parameter_name, parameter in student.parameters.items():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


def test_a_head_of_integers_is_tuned_as_well(packed: Path, tmp_path: Path) -> None:
    record = tune(packed / "ends", packed / "rotated", tmp_path / "out", replace(QUICK, steps=12, batch=4, seqlen=128))
    divergences = [entry["divergence"] for entry in record["history"]]
    assert min(divergences[1:]) < divergences[0]
    before, after = (
        Checkpoint.open(folder).read("lm_head.weight_scale") for folder in (packed / "ends", tmp_path / "out")
    )
    assert not torch.equal(before, after)


def test_gains_in_front_of_fp4_learn(packed: Path, tmp_path: Path) -> None:
    longer = replace(QUICK, steps=12, batch=4, seqlen=128)
    record = tune(packed / "fp4", resolve_model("reference"), tmp_path / "tuned", longer)
    before, after = Checkpoint.open(packed / "fp4"), Checkpoint.open(tmp_path / "tuned")
    changed = {name for name in before.entries if not torch.equal(before.read(name), after.read(name))}
    assert changed
    assert all(name.endswith("norm.weight") for name in changed)
    divergence = [entry["divergence"] for entry in record["history"]]
    assert min(divergence) < divergence[0]


def test_the_gradient_of_the_transform_is_its_transpose() -> None:
    spec = hadamard_plan(28 * 4)
    x = torch.randn(3, spec.size, dtype=torch.float64).float().requires_grad_()
    weights = torch.randn(3, spec.size)
    (hadamard(x, spec.base(), spec.block) * weights).sum().backward()
    matrix = hadamard(torch.eye(spec.size), spec.base(), spec.block)
    assert x.grad is not None
    assert torch.allclose(x.grad, weights @ matrix.T, atol=1e-5)


def test_scales_and_gains_learn_and_integers_stay(packed: Path, tmp_path: Path) -> None:
    longer = replace(QUICK, steps=12, batch=4, seqlen=128)
    record = tune(packed / "packed", resolve_model("reference"), tmp_path / "tuned", longer)
    before, after = Checkpoint.open(packed / "packed"), Checkpoint.open(tmp_path / "tuned")
    assert list(before.entries) == list(after.entries)
    changed = {name for name in before.entries if not torch.equal(before.read(name), after.read(name))}
    assert all(name.endswith(("weight_scale", "norm.weight")) for name in changed)
    assert any(name.endswith("weight_scale") for name in changed)
    divergence = [entry["divergence"] for entry in record["history"]]
    assert min(divergence) < divergence[0]
    assert not (tmp_path / "tuned" / STATE_FILE).exists()
    ids = torch.arange(7, 47)[None]
    packed_model, simulated = (load_model(tmp_path / "tuned", fake=fake) for fake in (False, True))
    assert torch.equal(packed_model(ids).logits, simulated(ids).logits)


def test_a_killed_run_ends_in_the_same_bytes(
    packed: Path, tmp_path: Path, interrupt_step: Callable[[int], list[float]]
) -> None:
    teacher = resolve_model("reference")
    tune(packed / "packed", teacher, tmp_path / "whole", QUICK)
    calls = interrupt_step(4)
    with pytest.raises(KeyboardInterrupt):
        tune(packed / "packed", teacher, tmp_path / "cut", QUICK)
    assert not (tmp_path / "cut").exists()
    tune(packed / "packed", teacher, tmp_path / "cut", QUICK, resume=True)
    assert len(calls) == 6  # steps 2 and 3 again, from the state behind step 1
    for name in ("model.safetensors", "config.json", "stage.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_cannot_be_tuned_is_refused(packed: Path, tmp_path: Path) -> None:
    teacher, out = resolve_model("reference"), tmp_path / "out"
    with pytest.raises(InputError, match="is no packed checkpoint; quantize first"):
        tune(packed / "rotated", teacher, out, QUICK)
    with pytest.raises(InputError, match="is quantized itself; give the 16-bit checkpoint"):
        tune(packed / "packed", packed / "groups", out, QUICK)
    quantize(packed / "rotated", None, tmp_path / "a4", QuantizeSettings(QuantScheme.parse("w16a4kv4"), "rtn"))
    with pytest.raises(UnsupportedError, match="schemes with 16-bit weights cannot be tuned yet"):
        tune(tmp_path / "a4", teacher, out, QUICK)
    shutil.copytree(packed / "packed", tmp_path / "seeing")
    (tmp_path / "seeing" / "vision.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="holds a vision part, which the tuned checkpoint would lose"):
        tune(tmp_path / "seeing", teacher, out, QUICK)
    with pytest.raises(InputError, match="`lr` -1"):
        TuneSettings(lr=-1)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError, match="has another vocabulary"):
        tune(packed / "packed", tmp_path / "other", out, QUICK)
    vocabulary = json.loads((teacher / "config.json").read_text())["vocab_size"]
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes)).save_pretrained(tmp_path / "smaller")
    with pytest.raises(MismatchError, match="has other shapes than"):
        tune(packed / "packed", tmp_path / "smaller", out, QUICK)
    assert not out.exists()


def test_the_command(packed: Path, tmp_path: Path) -> None:
    arguments = ["tune", "--model", str(packed / "packed"), "--teacher", "reference", "--out", str(tmp_path / "tuned")]
    arguments += ["--steps", "2", "--batch", "1", "--seqlen", "32", "--held-out", "1"]
    planned = CliRunner().invoke(main, [*arguments, "--plan"])
    assert planned.exit_code == 0, planned.output
    assert not (tmp_path / "tuned").exists()
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "nats per token, held out" in done.output
