"""compressed-tensors folders, written with the library's compressors, against its decompression, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.errors import DfqError
from dfrot.inputs import open_model
from dfrot.inputs.codes import packed_words, unpack_bits

INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"int{bits}": ("pack-quantized", {**INT4, "num_bits": bits}) for bits in range(2, 9)},
    **{f"asym{bits}": ("pack-quantized", {**INT4, "num_bits": bits, "symmetric": False}) for bits in (3, 4, 8)},
    "channel4": ("pack-quantized", {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}),
    "channel4-asym": ("pack-quantized", {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "channel"}),
    "int8-channel": ("int-quantized", {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}),
    "int8-asym": ("int-quantized", {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "channel"}),
    "int4-in-bytes": ("int-quantized", INT4),
    "fp8-tensor": ("float-quantized", {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}),
    "fp8-channel": ("float-quantized", {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}),
    "fp8-block": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "block", "block_structure": [64, 64]},
    ),
    "fp8-naive": ("naive-quantized", {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16},
    ),
    "mxfp4": (
        "mxfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32},
    ),
    "mxfp8": (
        "mxfp8-quantized",
        {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32},
    ),
}


def scheme_of(args: dict[str, Any]) -> Any:
    library = pytest.importorskip("compressed_tensors.quantization")
    return library.QuantizationScheme(targets=["Linear"], weights=library.QuantizationArgs(**args))


def cells(weight: Tensor, args: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Least and largest value of every cell that has a scale."""
    rows, cols = weight.shape
    r, c = {
        "tensor": (rows, cols),
        "channel": (1, cols),
        "block": tuple(args.get("block_structure", (1, 1))),
        "group": (1, args.get("group_size", 1)),
        "tensor_group": (1, args.get("group_size", 1)),
    }[args["strategy"]]
    grid = weight.float().reshape(rows // r, r, cols // c, c)
    return grid.amin((1, 3)), grid.amax((1, 3))


def compress(weight: Tensor, form: str, args: dict[str, Any]) -> dict[str, Tensor]:
    """The parts that the library makes of a weight."""
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    scheme = scheme_of(args)
    low, high = cells(weight, args)
    state: dict[str, Tensor] = {"weight": weight}
    shared = {}
    if form.startswith("nvfp4"):
        state["weight_global_scale"] = generate_gparam(weight.float().amin()[None], weight.float().amax()[None])
        shared["global_scale"] = state["weight_global_scale"]
    if form.startswith("mx"):
        scale = torch.exp2(torch.floor(torch.log2(torch.maximum(low.abs(), high.abs()) / 4)))
        zero = torch.zeros_like(scale)
    else:
        scale, zero = calculate_qparams(low, high, scheme.weights, **shared)
    state["weight_scale"] = scale.to(weight.dtype) if scale.dtype == torch.float32 else scale
    if not args["symmetric"]:
        state["weight_zero_point"] = zero.to(torch.int8)
    if args["strategy"] == "tensor":
        state["weight_scale"] = state["weight_scale"].reshape(1)
    from compressed_tensors.compressors import BaseCompressor

    return dict(BaseCompressor.get_value_from_registry(form).compress(state, scheme))


def decompress(parts: dict[str, Tensor], form: str, args: dict[str, Any]) -> Tensor:
    from compressed_tensors.compressors import BaseCompressor

    return BaseCompressor.get_value_from_registry(form).decompress(dict(parts), scheme_of(args))["weight"]


def entry(form: str, args: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args}},
        **more,
    }


def write(kit: SimpleNamespace, folder: Path, form: str, args: dict[str, Any], **more: Any) -> dict[str, Tensor]:
    """A folder in a format; returns what the library decompresses."""
    pytest.importorskip("compressed_tensors")
    dense = kit.dense_tensors()
    parts = {n: compress(t, form, args) for n, t in dense.items() if "_proj" in n}
    stored = {n: t for n, t in dense.items() if n not in parts}
    for name, tensors in parts.items():
        stored |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in tensors.items()}
    kit.write_folder(folder, stored, entry(form, args, **more))
    return {**dense, **{name: decompress(tensors, form, args) for name, tensors in parts.items()}}


@pytest.mark.parametrize("name", SCHEMES)
def test_weights_are_those_of_the_library(kit: SimpleNamespace, tmp_path: Path, name: str) -> None:
    expected = write(kit, tmp_path / "m", *SCHEMES[name])
    view = open_model(tmp_path / "m")
    assert set(view.entries) == set(expected)
    for tensor, value in expected.items():
        assert torch.equal(view.read(tensor), value.bfloat16()), tensor
        assert torch.equal(view.read_rows(tensor, 37, 70), value[37:70].bfloat16()), tensor
    quantized = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(expected[quantized], kit.dense_tensors()[quantized])


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 31, 32, 45])
def test_bit_strings_are_those_of_the_library(bits: int, count: int) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (count, count), dtype=torch.int8)
    for dim in (0, 1):
        words = helpers.pack_to_int32(codes, bits, packed_dim=dim)
        assert words.shape[dim] == packed_words(count, bits)
        assert torch.equal(unpack_bits(words, bits, count, dim).int() - 2 ** (bits - 1), codes.int())


def test_groups_of_columns_are_taken_from_g_idx(kit: SimpleNamespace, tmp_path: Path) -> None:
    """act-order: column j has the scale g_idx[j]. Unset ones (-1) mean consecutive groups."""
    expected = write(kit, tmp_path / "m", "pack-quantized", {**INT4, "actorder": None})
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "m/model.safetensors")
    module = "model.layers.0.self_attn.q_proj"
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    groups = (torch.arange(128) // 32)[order].int()
    for values in (groups, torch.full((128,), -1, dtype=torch.int32)):
        save_file({**tensors, f"{module}.weight_g_idx": values}, tmp_path / "m/model.safetensors")
        columns = values.long() if values.min() >= 0 else torch.arange(128) // 32
        codes = unpack_bits(tensors[f"{module}.weight_packed"], 4, 128, 1).float() - 8
        dense = codes * tensors[f"{module}.weight_scale"].float()[:, columns]
        view = open_model(tmp_path / "m")
        assert torch.equal(view.read(f"{module}.weight"), dense.bfloat16())
        assert torch.equal(view.read("model.norm.weight"), expected["model.norm.weight"])


def test_mixed_precision_takes_the_group_that_names_the_module(kit: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    packed, fp8 = SCHEMES["int4"], SCHEMES["fp8-channel"]
    dense = kit.dense_tensors()
    stored, expected = {}, dict(dense)
    for name, tensor in dense.items():
        form, args = fp8 if "down_proj" in name else packed
        if "_proj" in name:
            parts = compress(tensor, form, args)
            stored |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in parts.items()}
            expected[name] = decompress(parts, form, args)
        else:
            stored[name] = tensor
    groups = {
        "a": {"targets": ["Linear"], "weights": packed[1], "format": packed[0]},
        "b": {"targets": ["re:.*down_proj$"], "weights": fp8[1], "format": fp8[0], "input_activations": {}},
    }
    kit.write_folder(tmp_path / "m", stored, entry("mixed-precision", {}, config_groups=groups))
    view = open_model(tmp_path / "m")
    for name, value in expected.items():
        assert torch.equal(view.read(name), value), name
    assert "quantization of activations or of the KV cache" in view.dropped


@pytest.mark.parametrize("name", ["int4", "asym4", "int8-channel", "fp8-tensor"])
def test_logits_are_those_of_transformers(kit: SimpleNamespace, tmp_path: Path, name: str) -> None:
    from dfrot.runtime.load import load_model
    from dfrot.runtime.load_foreign import load_foreign

    write(kit, tmp_path / "m", *SCHEMES[name])
    ours = load_model(tmp_path / "m", torch.float32)
    theirs = load_foreign(tmp_path / "m", torch.float32, dequantize=True)
    tokens = torch.arange(24)[None] * 11
    with torch.inference_mode():
        a, b = ours(tokens).logits, theirs(tokens).logits
    assert torch.equal(a, b), float((a - b).abs().max())


@pytest.mark.parametrize(
    ("name", "extra"), [("int4", "weight"), ("nvfp4", "weight"), ("int8-channel", "weight_packed")]
)
def test_a_weight_that_is_stored_twice_is_refused(kit: SimpleNamespace, tmp_path: Path, name: str, extra: str) -> None:
    from safetensors.torch import load_file, save_file

    write(kit, tmp_path / "m", *SCHEMES[name])
    file, tensor = tmp_path / "m/model.safetensors", f"model.layers.0.mlp.down_proj.{extra}"
    save_file({**load_file(file), tensor: torch.ones(2, 2)}, file)
    with pytest.raises(DfqError, match="is stored beside weight") as caught:
        open_model(tmp_path / "m")
    assert tensor in str(caught.value)


def test_what_is_not_read_is_refused_in_one_line(kit: SimpleNamespace, tmp_path: Path) -> None:
    write(kit, tmp_path / "m", *SCHEMES["int4"])
    config = json.loads((tmp_path / "m/config.json").read_text())
    online = {"a": {"type": "hadamard", "apply": [{"targets": ["re:.*down_proj$"], "location": "input"}]}}
    fused = {"a": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "weight_input"}]}}
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({"format": "marlin-24"}, "format 'marlin-24' is not read"),
        ({"format": ["pack-quantized"]}, "is not read"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse weights"),
        ({"transform_config": {"config_groups": online}}, "applies a rotation at 'input'"),
        ({"transform_config": {"config_groups": fused}}, None),
        ({"config_groups": {}}, "config_groups"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "config_groups.'W4A16'"),
        ({"config_groups": {"a": {"targets": ["re:(a+)+"], "weights": INT4}}}, "pattern"),
        ({"config_groups": {"a": {"targets": ["re:("], "weights": INT4}}}, "pattern"),
        ({"config_groups": {"a": {"targets": ["Linear"], "weights": {**INT4, "num_bits": 9}}}}, "num_bits"),
        ({"config_groups": {"a": {"targets": ["Linear"], "weights": {**INT4, "group_size": 0}}}}, "group_size"),
        ({"config_groups": {"a": {"targets": ["Linear"], "weights": {**INT4, "group_size": 64}}}}, "weight_scale"),
        ({"config_groups": {"a": {"targets": ["Linear"], "weights": {**INT4, "num_bits": 5}}}}, "weight_packed"),
        ({"config_groups": {"a": {"targets": ["Linear"], "weights": {**INT4, "symmetric": False}}}}, "is missing"),
        (
            {
                "config_groups": {
                    "a": {"targets": ["x"], "weights": INT4},
                    "b": {"targets": ["y"], "weights": {**INT4, "num_bits": 5}},
                }
            },
            "no group",
        ),
    ]
    for change, expected in cases:
        (tmp_path / "m/config.json").write_text(
            json.dumps({**config, "quantization_config": {**config["quantization_config"], **change}})
        )
        if expected is None:
            open_model(tmp_path / "m")
            continue
        with pytest.raises(DfqError) as caught:
            open_model(tmp_path / "m")
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
