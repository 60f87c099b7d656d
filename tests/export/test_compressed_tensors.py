"""compressed-tensors: its own functions read our tensors, its strict schema our configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.checkpoint import Checkpoint
from dfrot.errors import UnsupportedError
from dfrot.export.run import export
from dfrot.export.source import open_source
from dfrot.export.targets import TARGETS
from dfrot.files import read_json
from dfrot.quant.scheme import QuantScheme
from dfrot.rotation.hadamard import hadamard_matrix
from dfrot.rotation.online import HadamardSpec
from dfrot.stages.quantize.run import quantize
from dfrot.stages.quantize.settings import QuantizeSettings

pytest.importorskip("compressed_tensors")
TARGET = TARGETS["compressed-tensors"]


@pytest.mark.parametrize("scheme", ["w4a16-g32", "w4a16", "w4a16-g32-wasym", "w4a16-wasym", "w8a16-g64", "w8a16"])
def test_its_compressor_gives_back_our_weights_bit_for_bit(
    scheme: str, pack: Callable[[str], Path], tmp_path: Path
) -> None:
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    source = pack(scheme)
    export(source, "compressed-tensors", tmp_path / "out")
    group = read_json(tmp_path / "out/config.json")["quantization_config"]["config_groups"]["group_0"]
    parsed = QuantizationScheme.model_validate(group)
    checkpoint, opened = Checkpoint.open(tmp_path / "out"), open_source(source, TARGET)
    for name in opened.plans:
        state = {
            kind: checkpoint.read(f"{name}.{kind}")
            for kind in ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")
            if f"{name}.{kind}" in checkpoint
        }
        assert state["weight_scale"].dtype == torch.bfloat16  # the model's dtype, and ours: nothing is rounded
        state["weight_scale"] = state["weight_scale"].float()
        theirs = PackedQuantizationCompressor.decompress(state, parsed)["weight"]
        assert torch.equal(theirs.float(), opened.packed_weight(name).dequantize())


@pytest.mark.parametrize("scheme", ["w4a16-g32", "w4a16", "w4a16-g32-wasym", "w4a8-sym", "w4a4-g32-sym"])
def test_its_schema_reads_the_configuration(scheme: str, pack: Callable[[str], Path], tmp_path: Path) -> None:
    """The library accepts unknown keys in silence: ours are held against its fields. The format is explicit: left to
    itself, the library takes an int8 container for W4A4."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    export(pack(scheme), "compressed-tensors", tmp_path / "out")
    entry = read_json(tmp_path / "out/config.json")["quantization_config"]
    assert set(entry) - {"quant_method"} <= set(QuantizationConfig.model_fields)
    group = entry["config_groups"]["group_0"]
    assert set(group) <= set(QuantizationScheme.model_fields)
    for part in ("weights", "input_activations"):
        assert set(group.get(part, {})) <= set(QuantizationArgs.model_fields)
    assert entry["format"] == group["format"] == "pack-quantized"
    parsed = QuantizationConfig.model_validate(entry)
    assert parsed.config_groups["group_0"].weights.num_bits == 4
    assert ("input_activations" in group) == (QuantScheme.parse(scheme).a_bits != 16)


def test_linears_kept_in_16_bits_are_ignored(
    dense: Path, kit: Any, own: Any, ids: Any, engine: Any, tmp_path: Path
) -> None:
    settings = QuantizeSettings(QuantScheme.parse("w4a16-g32"), "rtn", mse_clip=False, keep=("lm_head", "down_proj"))
    quantize(dense, None, tmp_path / "packed", settings)
    export(tmp_path / "packed", "compressed-tensors", tmp_path / "out")
    entry = read_json(tmp_path / "out/config.json")["quantization_config"]
    assert "model.layers.1.mlp.down_proj" in entry["ignore"]
    theirs = engine("compressed-tensors", tmp_path / "out")(ids)
    assert kit.difference(own(tmp_path / "packed"), theirs) < 1e-4
    with pytest.raises(UnsupportedError, match=r"keeps .*down_proj"):
        export(tmp_path / "packed", "gptq", tmp_path / "gptq")


def test_a_quantized_head_is_named(dense: Path, kit: Any, own: Any, ids: Any, engine: Any, tmp_path: Path) -> None:
    """vLLM's head is no `Linear`."""
    for name, kept in (("all", ()), ("blocks", ("lm_head",))):
        settings = QuantizeSettings(QuantScheme.parse("w4a16-g32"), "rtn", mse_clip=False, keep=kept)
        quantize(dense, None, tmp_path / name, settings)
        export(tmp_path / name, "compressed-tensors", tmp_path / f"{name}-out")
        entry = read_json(tmp_path / f"{name}-out/config.json")["quantization_config"]
        targets = entry["config_groups"]["group_0"]["targets"]
        assert targets == (["Linear"] if kept else ["Linear", "re:.*lm_head$"])
    theirs = engine("compressed-tensors", tmp_path / "all-out")(ids)
    assert kit.difference(own(tmp_path / "all"), theirs) < 1e-4


@pytest.fixture(scope="module")
def rotated(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense model with online rotations, packed."""
    from dfrot.stages.rotate.run import rotate
    from dfrot.stages.rotate.settings import RotateSettings

    root = tmp_path_factory.mktemp("online")
    text = root / "text.txt"
    text.write_text("the thin thing in the inn\n" * 400)
    rotate(dense, root / "rotated", RotateSettings(method="hadamard", dataset=str(text), seqlen=64, gate=False))
    scheme = QuantScheme.parse("w4a16-g32")
    quantize(root / "rotated", None, root / "packed", QuantizeSettings(scheme, "rtn", mse_clip=False))
    return root / "packed"


def test_an_online_rotation_is_written_only_when_asked_for(
    rotated: Path, pack: Callable[[str], Path], tmp_path: Path
) -> None:
    for target in TARGETS:
        with pytest.raises(UnsupportedError, match=r"R4.*`online=False`"):
            export(rotated, target, tmp_path / target)
    evidence = export(rotated, "compressed-tensors", tmp_path / "out", online_r4=True)
    assert any("transformers" in note and "nonsense" in note for note in evidence["notes"])
    with pytest.raises(UnsupportedError, match="no online rotation"):
        export(pack("w4a16"), "compressed-tensors", tmp_path / "again", online_r4=True)


def test_the_online_rotation_as_the_library_computes_it_is_ours(
    rotated: Path, kit: Any, own: Any, ids: Any, engine: Any, tmp_path: Path
) -> None:
    """transformers ignores the transform and is wrong; with the library's own online transform applied, it is right."""
    from compressed_tensors.transform import TransformConfig, TransformFactory

    from dfrot.export import engines
    from dfrot.runtime.load_foreign import load_foreign

    export(rotated, "compressed-tensors", tmp_path / "out", online_r4=True)
    assert kit.difference(own(rotated), engine("compressed-tensors", tmp_path / "out")(ids)) > 0.1
    entry = read_json(tmp_path / "out/config.json")["quantization_config"]["transform_config"]
    parsed = TransformConfig.model_validate(entry)
    model = load_foreign(tmp_path / "out")
    for name, scheme in parsed.config_groups.items():
        online = scheme.model_copy(update={"apply": [step for step in scheme.apply if step.location == "input"]})
        TransformFactory.from_scheme(online, name=name).apply_to_model(model)
    assert kit.difference(own(rotated), engines.transformers_logits(model)(ids)) < 1e-4


def test_the_stored_transform_is_the_sylvester_matrix(rotated: Path, tmp_path: Path) -> None:
    export(rotated, "compressed-tensors", tmp_path / "out", online_r4=True)
    checkpoint = Checkpoint.open(tmp_path / "out")
    stored = checkpoint.read("model.layers.0.mlp.down_proj.R4_input.weight").double()
    block = stored.shape[0]
    ours = hadamard_matrix(HadamardSpec(block, block, ()))
    assert torch.equal(stored, (ours * block**0.5).round())


def test_another_scheme_may_drop_activations_but_never_change_weights(
    pack: Callable[[str], Path], tmp_path: Path
) -> None:
    source = pack("w4a4kv4")
    export(source, "compressed-tensors", tmp_path / "a", QuantScheme.parse("w4a16"))
    export(pack("w4a16"), "compressed-tensors", tmp_path / "b")
    first, second = Checkpoint.open(tmp_path / "a"), Checkpoint.open(tmp_path / "b")
    assert all(torch.equal(first.read(name), second.read(name)) for name in second.entries)
    for scheme in ("w4a16-g32", "w8a16", "w4a16-wasym"):
        with pytest.raises(UnsupportedError, match=r"the weights of .* are w4a4kv4"):
            export(source, "compressed-tensors", tmp_path / "c", QuantScheme.parse(scheme))


def test_runtime_tricks_are_refused_where_activations_are_quantized(dense: Path, tmp_path: Path) -> None:
    scheme = replace(QuantScheme.parse("w4a4-sym"), a_clip=0.9)
    quantize(dense, None, tmp_path / "sinks", QuantizeSettings(scheme, "rtn", mse_clip=False, sink_tokens=2))
    with pytest.raises(UnsupportedError, match="`sink_tokens=0`"):
        export(tmp_path / "sinks", "compressed-tensors", tmp_path / "out")
    quantize(dense, None, tmp_path / "fake", QuantizeSettings(scheme, "rtn", mse_clip=False, fake=True))
    with pytest.raises(UnsupportedError, match="simulated"):
        export(tmp_path / "fake", "compressed-tensors", tmp_path / "out")
    quantize(dense, None, tmp_path / "clip", QuantizeSettings(scheme, "rtn", mse_clip=False))
    evidence = export(tmp_path / "clip", "compressed-tensors", tmp_path / "out")
    assert any("--a-clip 0.9333333" in note for note in evidence["notes"])
