"""Damaged folders of every format: refused in one line, or read with the dtypes and shapes that were announced."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.errors import DfqError
from dfrot.export.inspect import inspect
from dfrot.inputs import open_model

MODULE = "model.layers.0.mlp.down_proj"
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 7, 31, 2**31, 2**63, 10**40, 0.5, float("inf"), "", "x", "re:(", "float", "int"),
    *([], {}, [1], [0, 0], [2**40, 2**40], {"a": 1}, "tensor", "channel", "block", "group", "gptq_v2", "64x64", "\n"),
]


def words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, generator=torch.Generator().manual_seed(3))


def octets(*shape: int) -> Tensor:
    return torch.randint(0, 120, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def ct(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": False, **weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"g": group}, "ignore": []}


NF4_STATE = {"shape": [64, 96], "blocksize": 64, "nested_blocksize": 256, "nested_offset": 0.1}
NF4 = torch.tensor(list(json.dumps(NF4_STATE).encode()), dtype=torch.uint8)
# format -> quantization_config, parts of a linear of 64 outputs and 96 inputs
FORMATS: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {
    "fp8": (
        {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"},
        {"weight": octets(64, 96).view(torch.float8_e4m3fn), "weight_scale_inv": torch.rand(2, 3)},
    ),
    "packed": (
        ct("pack-quantized", strategy="group", group_size=32),
        {
            "weight_packed": words(64, 12),
            "weight_scale": torch.rand(64, 3).bfloat16(),
            "weight_zero_point": words(8, 3),
            "weight_shape": torch.tensor([64, 96]),
            "weight_g_idx": (torch.arange(96) // 32).int(),
        },
    ),
    "int8": (
        ct("int-quantized", num_bits=8, strategy="channel"),
        {
            "weight": octets(64, 96).to(torch.int8),
            "weight_scale": torch.rand(64, 1),
            "weight_zero_point": torch.zeros(64, 1, dtype=torch.int8),
        },
    ),
    "nvfp4": (
        ct("nvfp4-pack-quantized", type="float", symmetric=True, strategy="tensor_group", group_size=16),
        {
            "weight_packed": octets(64, 48),
            "weight_scale": octets(64, 6).view(torch.float8_e4m3fn),
            "weight_global_scale": torch.rand(1),
        },
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "checkpoint_format": "gptq"},
        {
            "qweight": words(12, 64),
            "qzeros": words(3, 8),
            "scales": torch.rand(3, 64).half(),
            "g_idx": (torch.arange(96) // 32).int(),
        },
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
        {"qweight": words(96, 8), "qzeros": words(3, 8), "scales": torch.rand(3, 64).half()},
    ),
    "nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {
            "weight": octets(3072, 1),
            "weight.quant_map": torch.rand(16),
            "weight.absmax": octets(96),
            "weight.nested_quant_map": torch.rand(256),
            "weight.nested_absmax": torch.rand(1),
            "weight.quant_state.bitsandbytes__nf4": NF4,
        },
    ),
    "mxfp4": (
        {"quant_method": "mxfp4", "modules_to_not_convert": []},
        {"x_blocks": octets(2, 8, 3, 16), "x_scales": octets(2, 8, 3)},
    ),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key and index within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inner for place in [(*path, key), *places(item, (*path, key))]]


def changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with one entry replaced or removed."""
    value = copy.deepcopy(value)
    *above, key = chance.choice(places(value))
    holder = value
    for step in above:
        holder = holder[step]
    if chance.random() < 0.2:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(chance.choice(VALUES))
    return value


def damage_config(folder: Path, chance: random.Random) -> None:
    config = json.loads((folder / "config.json").read_text())
    for _ in range(chance.choice((1, 1, 2))):
        if places(config["quantization_config"]):
            config["quantization_config"] = changed(config["quantization_config"], chance)
    (folder / "config.json").write_text(json.dumps(config))


def damage_header(folder: Path, chance: random.Random) -> None:
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = chance.choice([key for key in header if key.startswith(MODULE)])
    entry = header[name]
    kind = chance.choice(("shape", "flat", "dtype", "name", "drop", "value", "zero"))
    if kind == "shape":
        chance.shuffle(entry["shape"])
    elif kind == "flat":
        entry["shape"] = [entry["data_offsets"][1] - entry["data_offsets"][0]]
        entry["dtype"] = "U8"
    elif kind == "dtype":
        size = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I64": 8}.get(entry["dtype"], 1)
        same = {4: ["F32", "I32"], 2: ["F16", "BF16", "I16"], 8: ["F64", "I64"], 1: ["U8", "I8", "F8_E4M3", "BOOL"]}
        entry["dtype"] = chance.choice(same[size])
    elif kind == "name":
        header[chance.choice((f"{name}x", f"{MODULE}.weight", f"{MODULE}.g_idx"))] = header.pop(name)
    elif kind == "drop":
        del header[name]
    elif kind == "zero":
        entry["shape"] = [0, 2**46]
        entry["data_offsets"] = [entry["data_offsets"][0]] * 2
    else:
        header[name] = changed(entry, chance)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def damage_bytes(folder: Path, chance: random.Random) -> None:
    file = folder / "model.safetensors"
    raw = bytearray(file.read_bytes())
    if chance.random() < 0.2:
        raw = raw[: chance.randrange(len(raw))]
    else:
        for _ in range(chance.choice((1, 8, 200))):
            raw[chance.randrange(len(raw))] = chance.choice((0, 0x7F, 0xFF, chance.randrange(256)))
    file.write_bytes(raw)


DAMAGE: tuple[Callable[[Path, random.Random], None], ...] = (damage_config, damage_header, damage_bytes)


def outcome(folder: Path) -> str:
    """How reading a folder ends. Whatever is no DfqError fails the test."""
    fault: DfqError | None = None
    try:
        view = open_model(folder)
        for name, entry in view.entries.items():
            if entry.end > entry.start:
                tensor = view.read(name)
                assert (tensor.dtype, tuple(tensor.shape)) == (entry.dtype, entry.shape), name
                rows = view.read_rows(name, 1, 3)
                assert torch.equal(rows, tensor[1:3]) or not torch.isfinite(rows.float()).all(), name
    except DfqError as error:
        fault = error
    if fault is None:
        return "read"
    assert "\n" not in str(fault)
    assert len(str(fault)) < 1000
    return type(fault).__name__


def fuzz(kit: SimpleNamespace, tmp_path: Path, name: str, mutants: int) -> Counter[str]:
    entry, parts = FORMATS[name]
    tensors = {f"{MODULE}.{part}": value for part, value in parts.items()} | {"model.norm.weight": torch.ones(8)}
    folder = kit.write_folder(tmp_path / name, tensors, entry)
    files = {file: (folder / file).read_bytes() for file in ("config.json", "model.safetensors")}
    assert outcome(folder) == "read"
    counts: Counter[str] = Counter()
    for seed in range(mutants):
        for file, content in files.items():
            (folder / file).write_bytes(content)
        chance = random.Random(seed)
        DAMAGE[seed % 3](folder, chance)
        try:
            result = outcome(folder)
            if seed % 10 == 0 and result == "read":
                inspect(folder)
        except DfqError as error:
            result = type(error).__name__
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}: {error!r}") from error
        counts[result] += 1
    return counts


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_folders_are_refused_or_read(kit: SimpleNamespace, tmp_path: Path, name: str) -> None:
    counts = fuzz(kit, tmp_path, name, 150)
    assert counts["InputError"] > 20, counts  # the damage is felt
    assert counts["read"] > 5, counts


@pytest.mark.slow  # minutes: thousands of damaged folders of each format
@pytest.mark.parametrize("name", FORMATS)
def test_thousands_of_damaged_folders(kit: SimpleNamespace, tmp_path: Path, name: str) -> None:
    counts = fuzz(kit, tmp_path, name, 3000)
    assert counts["InputError"] > 500, counts
