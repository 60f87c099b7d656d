"""NVFP4 and MXFP4 as compressed-tensors: its presets, its compressor's bytes, and what dfq reads back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.errors import InputError, UnsupportedError
from dfrot.export.engines import transformers_logits
from dfrot.export.inspect import inspect
from dfrot.export.run import export
from dfrot.export.source import open_source
from dfrot.export.targets import TARGETS
from dfrot.files import read_json
from dfrot.inputs import open_model
from dfrot.number_formats import exponents
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.load import load_model
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings

pytest.importorskip("compressed_tensors")
SCHEMES = ["nvfp4", "nvfp4a16", "mxfp4", "mxfp4a16"]
TARGET = TARGETS["compressed-tensors"]
NAME = "model.layers.1.mlp.gate_proj"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_configuration_is_the_librarys_preset(scheme: str, pack: Callable[[str], Path], tmp_path: Path) -> None:
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

    record = export(pack(scheme), "compressed-tensors", tmp_path / "out")
    entry = read_json(tmp_path / "out/config.json")["quantization_config"]
    parsed = QuantizationConfig.model_validate(entry)
    preset = preset_name_to_scheme(scheme.upper(), ["Linear"])
    group = parsed.config_groups["group_0"]
    assert group.weights == preset.weights
    assert group.input_activations == preset.input_activations
    assert entry["format"] == group.format == record["storage"] == f"{scheme.removesuffix('a16')}-pack-quantized"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_its_compressor_writes_the_same_bytes_and_reads_the_same_weights(
    scheme: str, pack: Callable[[str], Path], tmp_path: Path
) -> None:
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    source = pack(scheme)
    record = export(source, "compressed-tensors", tmp_path / "out")
    group = read_json(tmp_path / "out/config.json")["quantization_config"]["config_groups"]["group_0"]
    parsed = QuantizationScheme.model_validate(group)
    compressor = BaseCompressor.get_value_from_registry(record["storage"])
    checkpoint, opened = Checkpoint.open(tmp_path / "out"), open_source(source, TARGET)
    nvfp4 = scheme.startswith("nv")
    for name, plan in opened.plans.items():
        scale = checkpoint.read(f"{name}.weight_scale")
        dense = opened.fp4_weight(name).dequantize()
        state = {"weight": dense, "weight_scale": scale.float() if nvfp4 else exponents(scale)}
        if nvfp4:
            state["weight_global_scale"] = checkpoint.read(f"{name}.weight_global_scale")
        theirs = compressor.compress(state, parsed)
        for kind in ("weight_packed", "weight_scale"):
            ours = checkpoint.read(f"{name}.{kind}")
            assert ours.dtype == theirs[kind].dtype
            # a code of -0 reads as 0 from a weight that was decoded
            same = ours.view(torch.uint8) == theirs[kind].view(torch.uint8)
            assert bool(same.all()) or kind == "weight_packed"
        back = compressor.decompress(theirs, parsed)["weight"].float()
        torch.testing.assert_close(back, dense, rtol=2.0**-7, atol=0)  # theirs is bfloat16
        scaled = f"{name}.input_global_scale" in checkpoint
        assert scaled == (scheme == "nvfp4")
        if scaled:
            assert float(checkpoint.read(f"{name}.input_global_scale")) == plan.a_scale


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dfq_reads_its_export_back(scheme: str, pack: Callable[[str], Path], tmp_path: Path) -> None:
    source = pack(scheme)
    export(source, "compressed-tensors", tmp_path / "out")
    view, opened = open_model(tmp_path / "out"), open_source(source, TARGET)
    for name in opened.plans:
        assert torch.equal(
            view.read(f"{name}.weight").float(), opened.fp4_weight(name).dequantize().to(torch.bfloat16).float()
        )
    facts = inspect(tmp_path / "out")
    bits = 4.5 if scheme.startswith("nv") else 4.25
    assert facts["bits_per_quantized_weight"] == pytest.approx(bits, abs=0.02)
    own = inspect(source)
    assert own["scheme"] == scheme
    assert own["weights"].startswith(scheme.removesuffix("a16"))
    assert own["exports_to"]["compressed-tensors"] == f"{scheme.removesuffix('a16')}-pack-quantized"


def test_activations_and_cache_are_dropped_on_request(pack: Callable[[str], Path], tmp_path: Path) -> None:
    export(pack("nvfp4"), "compressed-tensors", tmp_path / "a", QuantScheme.parse("nvfp4a16"))
    checkpoint = Checkpoint.open(tmp_path / "a")
    assert not any(name.endswith("input_global_scale") for name in checkpoint.entries)
    with pytest.raises(UnsupportedError, match=r"4-bit KV cache.*`scheme=nvfp4`"):
        export(pack("nvfp4kv4"), "compressed-tensors", tmp_path / "b")
    export(pack("nvfp4kv4"), "compressed-tensors", tmp_path / "c", QuantScheme.parse("nvfp4"))
    with pytest.raises(UnsupportedError, match=r"the weights of .* are nvfp4"):
        export(pack("nvfp4"), "compressed-tensors", tmp_path / "d", QuantScheme.parse("mxfp4"))
    for target in ("gguf", "gptq"):
        with pytest.raises(UnsupportedError, match="nvfp4 weights; only integers"):
            export(pack("nvfp4a16"), target, tmp_path / target)


def test_damaged_scales_are_not_exported(dense: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    quantize(dense, None, packed, QuantizeSettings(QuantScheme.parse("mxfp4a16"), "rtn"))
    entry = Checkpoint.open(packed).entry(f"{NAME}.weight_scale")
    with entry.file.open("r+b") as file:
        file.seek(entry.start + 3)
        file.write(b"\xff")
    with pytest.raises(InputError, match=rf"{NAME}\.weight_scale"):
        export(packed, "compressed-tensors", tmp_path / "out")


@pytest.mark.parametrize(("scheme", "limit"), [("mxfp4", 0.0), ("mxfp4a16", 0.0), ("nvfp4a16", 0.02), ("nvfp4", 0.3)])
def test_transformers_computes_the_same(
    scheme: str, limit: float, pack: Callable[[str], Path], engine: Any, ids: Tensor, kit: Any, tmp_path: Path
) -> None:
    """In bfloat16, which the library decodes to. That holds every weight of MXFP4; scales of NVFP4 are rounded, and the
    differences move activations to other codes."""
    export(pack(scheme), "compressed-tensors", tmp_path / "out")
    ours = transformers_logits(load_model(pack(scheme), torch.bfloat16))(ids)
    assert kit.difference(ours, engine("compressed-tensors", tmp_path / "out")(ids)) <= limit
