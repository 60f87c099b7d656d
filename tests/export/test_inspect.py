"""dfq inspect: right about every kind of checkpoint, one line about anything damaged or hostile."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfrot.errors import DfqError, InputError
from dfrot.export.inspect import inspect
from dfrot.export.run import export
from dfrot.export.targets import TARGETS
from dfrot.inputs.gguf import header as gguf_header


def test_our_own(dense: Path, pack: Callable[[str], Path]) -> None:
    plain = inspect(dense)
    assert plain["kind"] == "16-bit checkpoint"
    assert plain["bits_per_weight"] == 16
    assert plain["exports_to"]["gguf"] == "dense"
    assert "`scheme=w4a16-g32`" in plain["exports_to"]["gptq"]
    facts = inspect(pack("w4a4kv4"))
    assert facts["kind"] == "dfq, packed"
    assert facts["scheme"] == "w4a4kv4"
    assert facts["parameters"] == plain["parameters"]
    assert 4 < facts["bits_per_quantized_weight"] < 4.5
    assert "4-bit KV cache is not part of the format" in facts["exports_to"]["gguf"]
    assert facts["quantized_by"] == {"algorithm": "rtn", "calibration": None}
    assert inspect(pack("w4a16-g32"))["exports_to"] == {
        "compressed-tensors": "pack-quantized",
        "gguf": "Q4_0",
        "gptq": "gptq v1",
    }


@pytest.mark.parametrize("scheme", ["w4a16-g32", "w4a16-g32-wasym", "w8a16-g32"])
@pytest.mark.parametrize("target", TARGETS)
def test_what_we_export_is_recognised(target: str, scheme: str, pack: Callable[[str], Path], tmp_path: Path) -> None:
    """The same number of parameters, and the bits that the layout costs."""
    source = pack(scheme)
    export(source, target, tmp_path / "out")
    facts, ours = inspect(tmp_path / "out"), inspect(source)
    assert facts["kind"].lower().startswith(target)
    assert facts["parameters"] == ours["parameters"]
    assert facts["bits_per_quantized_weight"] == pytest.approx(ours["bits_per_quantized_weight"], abs=0.6)
    if target != "gguf":
        assert facts["weights"] == ours["weights"]
        assert facts["quantized_by"]["algorithm"] == "rtn"
    else:
        assert facts["scheme"] == scheme


def test_a_rotated_checkpoint_names_its_rotation_and_so_does_what_was_made_of_it(dense: Path, tmp_path: Path) -> None:
    from dfrot.quant.scheme import QuantScheme
    from dfrot.stages.quantize.run import quantize
    from dfrot.stages.quantize.settings import QuantizeSettings
    from dfrot.stages.rotate.run import rotate
    from dfrot.stages.rotate.settings import RotateSettings

    text = tmp_path / "text.txt"
    text.write_text("the thin thing in the inn\n" * 400)
    settings = RotateSettings(method="hadamard", dataset=str(text), seqlen=64, gate=False, online=False, seed=5)
    rotate(dense, tmp_path / "rotated", settings)
    first = inspect(tmp_path / "rotated")
    assert first["rotation"]["method"] == "hadamard"
    assert "seed 5" in first["rotation"]["r1"]
    integers = QuantizeSettings(QuantScheme.parse("w4a16-g32"), "rtn", mse_clip=False)
    quantize(tmp_path / "rotated", None, tmp_path / "packed", integers)
    export(tmp_path / "packed", "gptq", tmp_path / "out")
    assert inspect(tmp_path / "packed")["rotation"] == first["rotation"]
    assert inspect(tmp_path / "out")["rotation"] == first["rotation"]


def _with(model: Path, folder: Path, entry: Any) -> Path:
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": entry}))
    return folder


W = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
FOREIGN = {
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}, "AWQ (gemm)"),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": True, "desc_act": True}, "GPTQ v1"),
    "fp8": (
        {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"g": {"weights": W}}},
        "compressed-tensors (float-quantized)",
    ),
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "bitsandbytes (nf4)",
    ),
    "other": ({"quant_method": "hqq"}, "hqq"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_formats(name: str, dense: Path, tmp_path: Path) -> None:
    entry, kind = FOREIGN[name]
    assert inspect(_with(dense, tmp_path / "m", entry))["kind"] == kind


def test_int8_containers_and_online_rotations_are_pointed_out(dense: Path, tmp_path: Path) -> None:
    four = {**W, "num_bits": 4, "type": "int"}
    online = {"R4": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "input"}]}}
    entry = {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": {"weights": four, "format": "int-quantized"}},
        "transform_config": {"config_groups": online},
    }
    facts = inspect(_with(dense, tmp_path / "m", entry))
    assert any("int8 containers" in note for note in facts["notes"])
    assert facts["loads_in"] == ["vLLM"]


HOSTILE: list[Any] = [
    7,
    [],
    {"quant_method": "gptq"},
    {"quant_method": "gptq", "bits": 0},
    {"quant_method": "gptq", "bits": "x" * 1000},
    {"quant_method": "gptq", "bits": 4, "group_size": {}},
    {"quant_method": "awq", "bits": 10**9},
    {"quant_method": "compressed-tensors"},
    {"quant_method": "compressed-tensors", "config_groups": {}},
    {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": None}}},
    {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": W}}, "transform_config": 3},
    {"quant_method": "dfq", "format_version": 99},
    {"quant_method": "dfq", "format_version": 1, "scheme": {"w_bits": "a"}},
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_configuration_that_is_none_is_refused_in_one_line(number: int, dense: Path, tmp_path: Path) -> None:
    folder = _with(dense, tmp_path / "m", HOSTILE[number])
    with pytest.raises(DfqError) as caught:
        inspect(folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError):
            inspect(path)


@pytest.fixture(scope="module")
def whole(pack: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("gguf") / "out"
    export(pack("w4a16-g32"), "gguf", out)
    return (out / "model.gguf").read_bytes()


def test_a_cut_gguf_file_is_refused_wherever_it_was_cut(whole: bytes, tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    draw = random.Random(0)
    for length in [*range(0, 200, 7), *(draw.randrange(len(whole)) for _ in range(60))]:
        file.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            inspect(file)
        assert "\n" not in str(caught.value)


def test_a_damaged_gguf_header_never_breaks_the_reader(whole: bytes, tmp_path: Path) -> None:
    """Random bytes in the header: read as something, or refused in one line; quickly, and without large memory."""
    file = tmp_path / "bad.gguf"
    draw = random.Random(1)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(4, 12000)] = draw.randrange(256)
        file.write_bytes(data)
        with contextlib.suppress(DfqError):
            inspect(file)


@pytest.mark.parametrize("tensors", [0, 2**40])
@pytest.mark.parametrize("keys", [2**62, 2**20])
def test_impossible_counts_are_refused_before_anything_is_read(tensors: int, keys: int, tmp_path: Path) -> None:
    file = tmp_path / "huge.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + bytes(1000))
    with pytest.raises(InputError, match="promises"):
        gguf_header.read_header(file)


def test_the_reader_agrees_with_the_public_one(whole: bytes, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "model.gguf"
    file.write_bytes(whole)
    theirs = gguf.GGUFReader(file)
    ours = gguf_header.read_header(file)
    assert [(t.name, t.type, t.nbytes) for t in ours.tensors] == [
        (t.name, t.tensor_type.name, t.n_bytes) for t in theirs.tensors
    ]
    known = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert all(known[number] == entry for number, entry in gguf_header.TYPES.items())
