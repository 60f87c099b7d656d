"""The key shift that `dfq quantize` writes: whose mean it is, when there is one, and what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfrot.arch import open_described
from dfrot.calib.calibration import Calibration
from dfrot.checkpoint import Checkpoint
from dfrot.compat import attention as table
from dfrot.errors import InputError, UnsupportedError
from dfrot.export.inspect import inspect
from dfrot.export.run import export
from dfrot.files import read_json
from dfrot.outliers.measure.subject import Subject
from dfrot.quant.scheme import QuantScheme
from dfrot.rotation.hadamard import hadamard_plan, hadamard_transform
from dfrot.runtime import trainable_attention
from dfrot.runtime.load import load_model
from dfrot.runtime.trainable import TrainableModel
from dfrot.stage_folder import read_record
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings

Build = Callable[..., Path]
TOKENS = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(3))


def settings(scheme: str = "w16a16kv4", **changes: Any) -> QuantizeSettings:
    return QuantizeSettings(QuantScheme.parse(scheme), **{"algorithm": "rtn", **changes})


def shifts(folder: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.read(name) for name in checkpoint.entries if name.endswith(".key_shift")}


@pytest.mark.parametrize("sinks", [0, 3])
def test_it_is_the_mean_of_the_keys_that_attention_gets(model: Path, cal: Path, tmp_path: Path, sinks: int) -> None:
    quantize(model, cal, tmp_path / "q", settings(sink_tokens=sinks))
    _, arch = open_described(model)
    tokens = Calibration.open(cal, arch, Checkpoint.open(model).digest()).tokens()
    keys: list[Tensor] = []

    def wrap(attention: table.AttentionFunction) -> table.AttentionFunction:
        def record(module: nn.Module, query: Tensor, key: Tensor, *rest: Any, **options: Any) -> Any:
            keys.append(key)
            return attention(module, query, key, *rest, **options)

        return record

    with torch.no_grad(), table.wrapped("sdpa", wrap):
        load_model(model, torch.float32)(tokens, use_cache=False)
    stored = shifts(tmp_path / "q")
    assert len(stored) == len(keys) == arch.n_layers
    for layer, key in enumerate(keys):
        mean = key[:, :, sinks:].double().mean((0, 2))
        expected = hadamard_transform(mean, hadamard_plan(arch.head_dim))
        assert torch.allclose(stored[f"model.layers.{layer}.self_attn.key_shift"].double(), expected, atol=1e-5)


def test_when_there_is_one(model: Path, cal: Path, build: Build, text: Path, tmp_path: Path) -> None:
    def made(name: str, source: Path, calibration: Path | None, how: QuantizeSettings) -> tuple[Any, Any]:
        record = quantize(source, calibration, tmp_path / name, how)
        assert record["request"]["settings"].get("key_shift") == record.get("key_shift")
        assert (record["request"]["calibration"] is not None) == (record.get("key_shift") is not None)
        assert ("key_shift" in record) == bool(shifts(tmp_path / name))
        assert not list((tmp_path / name).glob("key-shift*"))
        return record.get("key_shift"), inspect(tmp_path / name)["kv"]

    mean = ("mean", "4-bit asymmetric, per token and head, dynamic; keys minus their mean")
    none = (None, "4-bit asymmetric, per token and head, dynamic")
    assert made("default", model, cal, settings()) == mean
    assert made("asked", model, cal, settings(key_shift="mean")) == mean
    assert made("refused", model, cal, settings(key_shift="none")) == none
    assert made("alone", model, None, settings()) == none
    assert made("exact", model, cal, settings("w4a8")) == (None, "16 bits")
    for name in ("default", "asked"):
        same = (tmp_path / name / "config.json").read_bytes() == (tmp_path / "default" / "config.json").read_bytes()
        assert same
    assert (
        read_record(tmp_path / "asked", "quantize")["request"]
        == read_record(tmp_path / "default", "quantize")["request"]
    )
    capped = build(tmp_path / "gemma2", "gemma2", head_dim=16)
    calibrate(capped, tmp_path / "capped", CalibrateSettings(str(text), 2, 16))
    assert made("gemma", capped, tmp_path / "capped", settings()) == none
    with pytest.raises(UnsupportedError, match="`key_shift=mean`: gemma2: keys cannot be shifted: attention scores"):
        quantize(capped, tmp_path / "capped", tmp_path / "no", settings(key_shift="mean"))


def test_a_run_that_stops_before_it_publishes_goes_on(
    model: Path, cal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(model, cal, tmp_path / "straight", settings())

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dfrot.stages.quantize.run._write_config", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize(model, cal, tmp_path / "stopped", settings())
    quantize(model, cal, tmp_path / "stopped", settings())
    for file in (tmp_path / "straight").iterdir():
        assert file.read_bytes() == (tmp_path / "stopped" / file.name).read_bytes()


def test_refusals_before_work(model: Path, cal: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="key shift mean needs a `calibration`"):
        quantize(model, None, tmp_path / "no", settings(key_shift="mean"))
    with pytest.raises(UnsupportedError, match="`scheme` w4a8 keeps keys in 16 bits; leave it out"):
        quantize(model, cal, tmp_path / "no", settings("w4a8", key_shift="mean"))
    with pytest.raises(InputError, match="choose one of mean, none"):
        settings(key_shift="median")
    assert not (tmp_path / "no").exists()


@pytest.fixture(scope="module")
def biased(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose keys have a bias, as Qwen 2.5 has it: large, in slow RoPE pairs too."""
    from safetensors.torch import load_file, save_file

    folder = build(tmp_path_factory.mktemp("biased") / "qwen2", "qwen2", online=True)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith("k_proj.bias"):
            tensor.copy_(8 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))))
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_a_key_bias_costs_less(biased: Path, text: Path, tmp_path: Path, divergence: Callable[..., float]) -> None:
    calibrate(biased, tmp_path / "cal", CalibrateSettings(str(text), 4, 32))
    results = {}
    for shift in ("none", "mean"):
        quantize(biased, tmp_path / "cal", tmp_path / shift, settings(key_shift=shift))
        results[shift] = divergence(tmp_path / shift, biased, TOKENS)
    assert results["mean"] < 0.4 * results["none"]


def test_packed_simulated_and_trainable_agree(
    biased: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable_attention, "fast_bfloat16", lambda: False)  # float32, as in the packed model
    calibrate(biased, tmp_path / "cal", CalibrateSettings(str(text), 2, 32))
    for name, fake in (("packed", False), ("fake", True)):
        quantize(biased, tmp_path / "cal", tmp_path / name, settings("w4a4kv4", fake=fake, sink_tokens=0))
    packed = load_model(tmp_path / "packed", torch.float32)
    with torch.no_grad():
        expected = packed(TOKENS).logits
        assert torch.equal(load_model(tmp_path / "fake", torch.float32)(TOKENS).logits, expected)
    subject = Subject(tmp_path / "packed")
    hidden = subject.runner.embed(TOKENS[:1])
    for layer in range(subject.arch.n_layers):
        hidden = subject.runner.run(subject.block(layer), hidden, subject.cache(layer))
    assert float((subject.runner.logits(hidden) - expected[:1]).abs().mean()) < 0.02 * float(expected.std())
    arch = open_described(biased)[1]
    student = TrainableModel(load_model(tmp_path / "packed", torch.float32), arch, torch.bfloat16)
    assert torch.allclose(student.model(TOKENS, use_cache=False).logits, expected, atol=1e-3 * float(expected.std()))
    assert shifts(tmp_path / "packed").keys() == shifts(tmp_path / "fake").keys()


def test_exports_leave_it_out(build: Build, text: Path, tmp_path: Path) -> None:
    source = build(tmp_path / "plain", "qwen2", intermediate_size=64, num_key_value_heads=4)
    calibrate(source, tmp_path / "cal", CalibrateSettings(str(text), 2, 32))
    quantize(source, tmp_path / "cal", tmp_path / "q", settings("w4a16kv4-g32"))
    assert shifts(tmp_path / "q")
    for target in ("compressed-tensors", "gptq"):
        record = export(tmp_path / "q", target, tmp_path / target, QuantScheme.parse("w4a16-g32"))
        assert not shifts(tmp_path / target)
        assert any("key shift is left out" in note for note in record["notes"])
        assert "key_shift" not in str(read_json(tmp_path / target / "config.json"))
