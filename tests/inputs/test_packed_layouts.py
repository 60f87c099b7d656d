"""GPTQ, AWQ and MXFP4: packers written by hand from the formats' descriptions, values computed beside them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.errors import DfqError
from dfrot.inputs import DequantizedCheckpoint, open_model

GROUP = 32


def bit_string(codes: Tensor, bits: int) -> Tensor:
    """uint8 [n, m] -> int32 [n, m bits / 32]: code j of a row at bits j * bits ..., lowest first."""
    flat = ((codes.long().unsqueeze(-1) >> torch.arange(bits)) & 1).flatten(1)  # bits of a row, in order
    words = (flat.reshape(len(codes), -1, 32) << torch.arange(32)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def gptq(weight: Tensor, bits: int, version: int, order: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """The parts of a weight [out, in], asymmetric, and what they mean."""
    out, inputs = weight.shape
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (out, inputs), generator=generator)
    zeros = torch.randint(1, 2**bits, (out, inputs // GROUP), generator=generator)
    scales = (torch.rand(out, inputs // GROUP, generator=generator) * 0.05 + 0.01).half()
    groups = torch.arange(inputs) // GROUP
    if order is not None:
        groups = groups[order]
    dense = scales[:, groups].float() * (codes - zeros[:, groups]).float()
    parts = {
        "qweight": bit_string(codes, bits).t(),
        "qzeros": bit_string((zeros - int(version == 1)).t(), bits),
        "scales": scales.t(),
        "g_idx": groups.int(),
    }
    return parts, dense


def awq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    out, inputs = weight.shape
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 16, (inputs, out), generator=generator)
    zeros = torch.randint(0, 16, (inputs // GROUP, out), generator=generator)
    scales = (torch.rand(inputs // GROUP, out, generator=generator) * 0.05 + 0.01).half()
    groups = torch.arange(inputs) // GROUP
    dense = (scales[groups].float() * (codes - zeros[groups]).float()).t()

    def pack(values: Tensor) -> Tensor:
        words = torch.zeros(len(values), out // 8, dtype=torch.int64)
        for nibble, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            words |= values[:, column::8] << 4 * nibble
        return torch.where(words >= 2**31, words - 2**32, words).int()

    return {"qweight": pack(codes), "qzeros": pack(zeros), "scales": scales}, dense


def write(kit: SimpleNamespace, folder: Path, quantize: Any, entry: dict[str, Any]) -> dict[str, Tensor]:
    """A float16 folder whose linears are quantized; returns what its tensors mean, in float32."""
    stored, expected = {}, {}
    for name, tensor in kit.dense_tensors(dtype=torch.float16).items():
        if "_proj" in name:
            parts, expected[name] = quantize(tensor)
            stored |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in parts.items()}
        else:
            stored[name] = expected[name] = tensor
    kit.write_folder(folder, stored, entry, dtype="float16")
    return expected


def check(folder: Path, expected: dict[str, Tensor]) -> DequantizedCheckpoint:
    view, wide = open_model(folder), open_model(folder, torch.float32)
    assert isinstance(view, DequantizedCheckpoint)
    assert set(view.entries) == set(expected)
    for name, value in expected.items():
        assert view.entry(name).dtype == torch.float16
        assert torch.equal(view.read(name), value.half()), name
        assert torch.equal(wide.read(name), value.float()), name
        assert torch.equal(view.read_rows(name, 13, 90), value[13:90].half()), name
    return view


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(kit: SimpleNamespace, tmp_path: Path, bits: int, version: int) -> None:
    entry = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": False, "sym": False}
    if version == 2:
        entry["checkpoint_format"] = "gptq_v2"
    view = check(tmp_path / "m", write(kit, tmp_path / "m", lambda w: gptq(w, bits, version), entry))
    assert view.format == f"GPTQ (version {version})"


def test_gptq_with_act_order_rules_and_missing_groups(kit: SimpleNamespace, tmp_path: Path) -> None:
    entry = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "sym": False}

    def shuffled(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return gptq(weight, 4, 1, torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(2)))

    check(tmp_path / "ordered", write(kit, tmp_path / "ordered", shuffled, entry))
    entry |= {"desc_act": False, "dynamic": {r"+:.*": {"bits": 8}}}

    def mixed(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        parts, dense = gptq(weight, 8 if weight.shape[0] == 192 else 4, 1)
        if weight.shape[0] == 192:
            parts.pop("g_idx")
        elif weight.shape[0] == 64:
            parts["g_idx"] = torch.zeros_like(parts["g_idx"])  # never filled in
        return parts, dense

    check(tmp_path / "mixed", write(kit, tmp_path / "mixed", mixed, entry))


def test_awq(kit: SimpleNamespace, tmp_path: Path) -> None:
    entry = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    check(tmp_path / "m", write(kit, tmp_path / "m", awq, entry))


def test_experts_in_mxfp4_are_those_of_transformers(kit: SimpleNamespace, tmp_path: Path) -> None:
    """gpt-oss is no architecture of ours: its tensors can be read, a model cannot be made of them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    tensors, expected = {}, {}
    for name, rows in (("gate_up_proj", 96), ("down_proj", 64)):
        blocks = torch.randint(0, 256, (3, rows, 2, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(100, 140, (3, rows, 2), dtype=torch.uint8, generator=generator)
        stem = f"model.layers.0.mlp.experts.{name}"
        tensors |= {f"{stem}_blocks": blocks, f"{stem}_scales": scales}
        expected[stem] = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    tensors["model.layers.0.mlp.experts.down_proj_bias"] = torch.ones(3, 64).bfloat16()
    folder = kit.write_folder(tmp_path / "m", tensors, {"quant_method": "mxfp4"}, model_type="gpt_oss")
    view = open_model(folder)
    for name, value in expected.items():
        assert torch.equal(view.read(name), value)
        assert torch.equal(view.read_rows(name, 1, 3), value[1:3])
    assert "model.layers.0.mlp.experts.down_proj_bias" in view.entries


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("gptq", {"bits": 5}, "bits '5' is not read"),
    ("gptq", {"bits": 8}, "holds codes of 4 bits, config.json says 8"),
    ("gptq", {"bits": True}, "is not read"),
    ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not read"),
    ("gptq", {"pack_dtype": "int16"}, "pack_dtype 'int16' is not read"),
    ("gptq", {"rotation": "hadamard"}, "rotation 'hadamard' is not read"),
    ("gptq", {"group_size": 0}, "group_size '0' is not a size"),
    ("awq", {"version": "gemv"}, "version 'gemv' is not read"),
    ("awq", {"bits": 3}, "bits '3' is not read"),
    ("awq", {"zero_point": False}, "zero_point 'False' is not read"),
]


@pytest.mark.parametrize(("method", "change", "expected"), BAD)
def test_variants_that_are_not_read_are_refused(
    kit: SimpleNamespace, tmp_path: Path, method: str, change: dict[str, Any], expected: str
) -> None:
    entry = {"quant_method": method, "bits": 4, "group_size": GROUP, "desc_act": False, "version": "gemm"}
    write(kit, tmp_path / "m", awq if method == "awq" else lambda w: gptq(w, 4, 1), {**entry, **change})
    with pytest.raises(DfqError) as caught:
        open_model(tmp_path / "m")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales", "g_idx"])
def test_parts_that_do_not_fit_are_refused(kit: SimpleNamespace, tmp_path: Path, part: str) -> None:
    from safetensors.torch import load_file, save_file

    entry = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True}
    write(kit, tmp_path / "m", lambda w: gptq(w, 4, 1), entry)
    file = tmp_path / "m/model.safetensors"
    tensors, name = load_file(file), f"model.layers.0.self_attn.q_proj.{part}"
    wrong = [tensors[name][:-1].contiguous(), tensors[name].float().to(torch.float64)]
    if part == "g_idx":
        wrong.append(tensors[name] + 1)
    if part != "g_idx":
        wrong.append(tensors[name].flatten())
    for value in wrong:
        save_file({**tensors, name: value}, file)
        with pytest.raises(DfqError) as caught:
            open_model(tmp_path / "m")
        assert name.rpartition(".")[0] in str(caught.value)
    if part != "g_idx":
        save_file({key: value for key, value in tensors.items() if key != name}, file)
        with pytest.raises(DfqError):
            open_model(tmp_path / "m").read("model.layers.0.self_attn.q_proj.weight")


def test_our_own_gptq_export_is_read_back(kit: SimpleNamespace, tmp_path: Path) -> None:
    """What `dfq export --to gptq` writes means the weights of the packed folder it was written from."""
    from dfrot.export.gptq.reader import dense_weights
    from dfrot.export.run import export
    from dfrot.quant.scheme import QuantScheme
    from dfrot.stages.quantize.run import quantize
    from dfrot.stages.quantize.settings import QuantizeSettings

    model = kit.write_folder(tmp_path / "m", kit.dense_tensors(), None)
    scheme = QuantScheme.parse("w4a16-g32")
    quantize(model, None, tmp_path / "packed", QuantizeSettings(scheme=scheme, algorithm="rtn"))
    export(tmp_path / "packed", "gptq", tmp_path / "gptq")
    view = open_model(tmp_path / "gptq", torch.float32)
    for name, value in dense_weights(tmp_path / "gptq").items():
        assert torch.equal(view.read(name), value.float()), name
    assert json.loads((tmp_path / "gptq/config.json").read_text())["quantization_config"]["quant_method"] == "gptq"
