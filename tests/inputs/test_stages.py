"""Every stage takes a quantized folder of another tool as it takes the 16-bit folder with the same weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dfrot.errors import DfqError
from dfrot.export.inspect import inspect
from dfrot.inputs import DequantizedCheckpoint, open_model
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stages.calibrate.run import calibrate
from dfrot.stages.calibrate.settings import CalibrateSettings
from dfrot.stages.evaluate import perplexity
from dfrot.stages.evaluate.settings import PerplexitySettings
from dfrot.stages.outliers.measure import outliers
from dfrot.stages.outliers.settings import OutlierSettings
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings


@pytest.fixture
def twin(kit: SimpleNamespace, fp8_model: Path, tmp_path: Path) -> Path:
    """The 16-bit folder with the weights of `fp8_model`."""
    view = open_model(fp8_model)
    return Path(kit.write_folder(tmp_path / "twin", {name: view.read(name) for name in view.entries}, None))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_view_has_the_interface_of_a_checkpoint(fp8_model: Path, twin: Path) -> None:
    view, dense = open_model(fp8_model), open_model(twin)
    assert isinstance(view, DequantizedCheckpoint)
    assert not isinstance(dense, DequantizedCheckpoint)
    assert "quantization_config" not in view.config
    assert {name: (e.dtype, e.shape) for name, e in view.entries.items()} == {
        name: (e.dtype, e.shape) for name, e in dense.entries.items()
    }
    for name in dense.entries:
        whole = dense.read(name)
        assert torch.equal(view.read(name), whole)
        for begin, end in ((0, 1), (100, 131), (127, 10**6)):
            assert torch.equal(view.read_rows(name, begin, end), whole[begin:end]), (name, begin)
    assert view.digest() == open_model(fp8_model).digest()
    assert view.digest() not in (dense.digest(), open_model(fp8_model, torch.float32).digest())


def test_rotation_and_quantization_have_the_bytes_of_the_twin(fp8_model: Path, twin: Path, tmp_path: Path) -> None:
    for name, model in (("ours", fp8_model), ("theirs", twin)):
        out = tmp_path / name
        rotate(model, out / "rotated", RotateSettings("hadamard", "stdlib", seqlen=64))
        settings = CalibrateSettings(dataset="stdlib", samples=2, seqlen=64)
        calibrate(model, out / "stats", settings)
        quantize(model, out / "stats", out / "packed", QuantizeSettings(scheme=QuantScheme.parse("w4a16")))
    for stage in ("rotated", "packed"):
        assert weights(tmp_path / "ours" / stage) == weights(tmp_path / "theirs" / stage)
    assert "quantization_config" in json.loads((tmp_path / "ours/packed/config.json").read_text())


def test_perplexity_and_logits_are_those_of_the_twin(fp8_model: Path, twin: Path) -> None:
    settings = PerplexitySettings(dataset="stdlib", seqlen=64, windows=2)
    ours, theirs = perplexity.evaluate([fp8_model, twin], settings)["results"]
    assert ours["perplexity"] == theirs["perplexity"]
    tokens = torch.arange(20)[None] * 7
    a, b = load_model(fp8_model), load_model(twin)
    assert a.dtype == b.dtype == torch.bfloat16
    assert torch.equal(a(tokens).logits, b(tokens).logits)


def test_inspect_says_what_it_is(fp8_model: Path) -> None:
    facts = inspect(fp8_model)
    assert (facts["kind"], facts["read_by_dfq"]) == ("FP8 (e4m3)", "yes, dequantized to bfloat16")
    assert facts["parameters"] == sum(math.prod(entry.shape) for entry in open_model(fp8_model).entries.values())


def test_unknown_methods_are_refused_in_one_line(kit: SimpleNamespace, tmp_path: Path) -> None:
    folder = kit.write_folder(tmp_path / "m", kit.dense_tensors(), {"quant_method": "hqq"})
    with pytest.raises(DfqError, match="already quantized with 'hqq', which dfq does not read") as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)


MOE = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "head_dim": 32,
}


def test_mixtures_of_experts(kit: SimpleNamespace, tmp_path: Path) -> None:
    """transformers merges the experts of a layer while it loads them."""
    tensors = kit.quantized_tensors(kit.dense_tensors(**MOE), kit.fp8_blocks)
    model = kit.write_folder(tmp_path / "fp8", tensors, kit.FP8, **MOE)
    view = open_model(model)
    twin = kit.write_folder(tmp_path / "twin", {name: view.read(name) for name in view.entries}, None, **MOE)
    tokens = torch.arange(20)[None] * 7
    assert torch.equal(load_model(model)(tokens).logits, load_model(twin)(tokens).logits)
    for name, source in (("ours", model), ("theirs", twin)):
        rotate(source, tmp_path / name, RotateSettings("hadamard", "stdlib", seqlen=64))
    assert weights(tmp_path / "ours") == weights(tmp_path / "theirs")


def test_generated_text_and_outliers_are_those_of_the_twin(fp8_model: Path, twin: Path, tmp_path: Path) -> None:
    tokens = torch.arange(5)[None]
    drawn = [load_model(model).generate(tokens, max_new_tokens=8, do_sample=False) for model in (fp8_model, twin)]
    assert torch.equal(*drawn)
    settings = OutlierSettings(dataset="stdlib", windows=1, seqlen=64)
    reports = [outliers(model, None, settings) for model in (fp8_model, twin)]
    names = [report.pop("model")["name"] for report in reports]
    assert names == ["fp8", "twin"]
    assert reports[0] == reports[1]
