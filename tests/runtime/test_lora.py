"""PEFT's LoRA adapters on packed, simulated and rotated linears."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.arch import describe
from dfrot.bench.models.random_model import dfq_config
from dfrot.errors import UnsupportedError
from dfrot.files import read_json
from dfrot.quant.config import DfqConfig
from dfrot.quant.modules.linear import QuantLinear
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model

peft = pytest.importorskip("peft")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def packed(kit: SimpleNamespace, tmp_path: Path) -> Path:
    source = kit.build(tmp_path / "source", "llama")
    config = dfq_config(describe(read_json(source / "config.json")), QuantScheme.parse("w4a8kv4"))
    folder: Path = kit.pack(source, tmp_path / "packed", config)
    return folder


@torch.no_grad()
def logits(model: Any, ids: Tensor, cached: bool = False) -> Tensor:
    """cached: as in generation, where the native decoder serves what it can."""
    out: Tensor = model(input_ids=ids, use_cache=cached).logits
    return out.float()


def adapted(model: Any, targets: list[str], **options: Any) -> Any:
    """The model with random adapters: peft's own begin at zero."""
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


@pytest.mark.parametrize("targets", [ALL, ["v_proj"]])
@pytest.mark.parametrize("fake", [False, True])
def test_the_adapter_adds_its_product(packed: Path, ids: Tensor, targets: list[str], fake: bool) -> None:
    model = load_model(packed, fake=fake)
    before = logits(model, ids)
    model = adapted(model, targets)
    layer = model.get_submodule("base_model.model.model.layers.1.self_attn.v_proj")
    x = torch.randn(2, 5, 64)
    product = x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T * layer.scaling["default"]
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.base_layer(x) + product)
    after = logits(model, ids)
    assert float((after - before).norm() / before.norm()) > 0.01
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), before)


def test_adapters_are_saved_and_loaded(packed: Path, ids: Tensor, tmp_path: Path) -> None:
    model = adapted(load_model(packed), ALL)
    model.save_pretrained(tmp_path / "adapter")
    assert sorted(file.name for file in (tmp_path / "adapter").glob("adapter_*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = peft.PeftModel.from_pretrained(load_model(packed), tmp_path / "adapter")
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_the_native_decoder_steps_back_and_returns(packed: Path, ids: Tensor) -> None:
    """It was built before one linear, not its first, was replaced."""
    model = load_model(packed)
    before, native = logits(model, ids, cached=True), model.dfq_native
    if native.unfit:
        pytest.skip(native.unfit)
    assert native.steps == 1, native.report()
    wrapped = adapted(model, ["down_proj"])
    assert not torch.equal(logits(wrapped, ids, cached=True), before)
    assert native.steps == 1, native.report()
    assert "down_proj is not a packed linear" in str(native.fallbacks)
    restored = wrapped.unload()
    assert type(restored.model.layers[0].mlp.down_proj) is QuantLinear
    assert torch.equal(logits(restored, ids, cached=True), before)
    assert native.steps == 2


def test_generate_with_an_adapter(packed: Path, ids: Tensor) -> None:
    model = adapted(load_model(packed), ALL)
    out = model.generate(input_ids=ids[:1, :6], max_new_tokens=5, do_sample=False, pad_token_id=0)
    expected = ids[:1, :6]
    for _ in range(5):
        expected = torch.cat([expected, logits(model, expected)[:, -1:].argmax(-1)], 1)
    assert out.shape == expected.shape
    assert torch.equal(out[:, :7], expected[:, :7])


def test_merging_and_training_are_refused(packed: Path, ids: Tensor) -> None:
    model = adapted(load_model(packed), ["down_proj"])
    with pytest.raises(UnsupportedError, match="cannot be merged into quantized"):
        model.merge_and_unload()
    layer = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    with pytest.raises(UnsupportedError, match="train the adapter on the rotated 16-bit checkpoint"):
        layer(torch.randn(3, layer.in_features)).sum().backward()
    with pytest.raises(RuntimeError):  # the packed head hands no gradient on
        model(input_ids=ids).logits.sum().backward()


@pytest.mark.parametrize("option", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_adapters_that_read_the_weight_are_refused(packed: Path, option: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="dense 16-bit linears"):
        adapted(load_model(packed), ["q_proj"], **option)


def test_an_adapter_is_trained_on_the_rotated_checkpoint(kit: SimpleNamespace, tmp_path: Path, ids: Tensor) -> None:
    """Gradients pass the online rotation in front of down_proj: they equal finite differences."""
    source = kit.build(tmp_path / "source", "llama")
    config = dfq_config(describe(read_json(source / "config.json")), QuantScheme.parse("w4a8kv4"))
    model = load_model(kit.pack(source, tmp_path / "rotated", DfqConfig(None, config.online)), torch.float64)
    wrapped = adapted(model, ["v_proj"]).double()
    weight = wrapped.get_submodule("base_model.model.model.layers.0.self_attn.v_proj").lora_B["default"].weight

    def loss() -> Tensor:
        return (wrapped(input_ids=ids).logits ** 2).mean()  # type: ignore[no-any-return]

    loss().backward()
    direction = torch.randn(weight.shape, dtype=torch.float64)
    step = 3e-3  # the rotation is computed in float32
    with torch.no_grad():
        weight += step * direction
        high = loss()
        weight -= 2 * step * direction
        difference = float(high - loss()) / (2 * step)
    expected = float((weight.grad * direction).sum())
    assert abs(expected) > 1e-6
    assert difference == pytest.approx(expected, rel=0.02)
