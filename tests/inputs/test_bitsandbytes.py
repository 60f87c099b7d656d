"""bitsandbytes folders: packed by hand from the format's description, and by the library where it is installed."""

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

CODES = torch.linspace(-1, 1, 16)
NAME = "model.layers.0.mlp.gate_proj"
STATE = "weight.quant_state.bitsandbytes__nf4"


def state(**values: Any) -> Tensor:
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


def four_bits(weight: Tensor, size: int = 64, nested: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """The parts of a weight and what they mean, block by block."""
    generator = torch.Generator().manual_seed(size)
    count = weight.numel()
    codes = torch.randint(0, 16, (count,), generator=generator)
    blocks = -(-count // size)
    padded = torch.nn.functional.pad(codes, (0, count % 2))
    parts = {
        "weight": (padded[::2] << 4 | padded[1::2]).to(torch.uint8).unsqueeze(1),
        "weight.quant_map": CODES.clone(),
    }
    facts: dict[str, Any] = {"quant_type": "nf4", "blocksize": size, "dtype": "bfloat16", "shape": list(weight.shape)}
    scales = torch.rand(blocks, generator=generator)
    if nested:
        index = torch.randint(0, 256, (blocks,), generator=generator)
        table, factors = torch.linspace(-1, 1, 256), torch.rand(-(-blocks // nested), generator=generator)
        scales = table[index] * factors[torch.arange(blocks) // nested] + 0.25
        parts |= {"weight.absmax": index.to(torch.uint8), "weight.nested_quant_map": table}
        parts["weight.nested_absmax"] = factors
        facts |= {"nested_blocksize": nested, "nested_offset": 0.25, "nested_dtype": "float32"}
    else:
        parts["weight.absmax"] = scales
    parts[STATE] = state(**facts)
    dense = CODES[codes] * scales[torch.arange(count) // size]
    return parts, dense.reshape(weight.shape)


def eight_bits(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(8)
    codes = torch.randint(-127, 128, weight.shape, dtype=torch.int8, generator=generator)
    scales = torch.rand(len(weight), generator=generator)
    parts = {"weight": codes, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, codes.float() * (scales * (1 / 127)).unsqueeze(1)


def write(kit: SimpleNamespace, folder: Path, quantize: Any, **changes: Any) -> dict[str, Tensor]:
    """A folder whose linears are quantized; returns what its tensors mean, in float32."""
    stored, expected = {}, {}
    for name, tensor in kit.dense_tensors(**changes).items():
        if "_proj" in name:
            parts, expected[name] = quantize(tensor)
            stored |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in parts.items()}
        else:
            stored[name], expected[name] = tensor, tensor.float()
    kit.write_folder(folder, stored, {"quant_method": "bitsandbytes", "load_in_4bit": True}, **changes)
    return expected


def check(folder: Path, expected: dict[str, Tensor]) -> None:
    view, wide = open_model(folder), open_model(folder, torch.float32)
    assert isinstance(view, DequantizedCheckpoint)
    assert set(view.entries) == set(expected)
    for name, value in expected.items():
        assert torch.equal(wide.read(name), value), name
        assert torch.equal(view.read(name), value.bfloat16()), name
        assert torch.equal(view.read_rows(name, 3, 30), value[3:30].bfloat16()), name


@pytest.mark.parametrize(("size", "nested"), [(64, 0), (64, 256), (96, 0), (4096, 2)])
def test_four_bits(kit: SimpleNamespace, tmp_path: Path, size: int, nested: int) -> None:
    check(tmp_path / "m", write(kit, tmp_path / "m", lambda weight: four_bits(weight, size, nested)))


def test_rows_of_an_odd_width_share_bytes(kit: SimpleNamespace, tmp_path: Path) -> None:
    check(tmp_path / "m", write(kit, tmp_path / "m", four_bits, intermediate_size=191))


def test_eight_bits(kit: SimpleNamespace, tmp_path: Path) -> None:
    check(tmp_path / "m", write(kit, tmp_path / "m", eight_bits))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_what_the_library_packs_means_what_it_unpacks(
    kit: SimpleNamespace, tmp_path: Path, kind: str, nested: bool
) -> None:
    library = pytest.importorskip("bitsandbytes.functional")

    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        packed, facts = library.quantize_4bit(weight.float(), blocksize=64, quant_type=kind, compress_statistics=nested)
        parts = {f"weight.{name}": value for name, value in facts.as_dict(packed=True).items()}
        return {"weight": packed, **parts}, library.dequantize_4bit(packed, facts)

    check(tmp_path / "m", write(kit, tmp_path / "m", quantize))


GOOD = {"blocksize": 64, "shape": [192, 128]}
BAD: list[tuple[dict[str, Tensor | None], str]] = [
    ({STATE: None}, f"{STATE} is missing"),
    ({STATE: state(**{**GOOD, "shape": [192, 129]})}, "weight has shape"),
    ({STATE: state(**{**GOOD, "shape": 7})}, "no description"),
    ({STATE: state(**{**GOOD, "blocksize": 0})}, "no description"),
    ({STATE: state(**{**GOOD, "blocksize": True})}, "no description"),
    ({STATE: state(**{**GOOD, "nested_offset": "x"})}, "no description"),
    ({STATE: state(**{**GOOD, "blocksize": 128})}, "weight.absmax has shape"),
    ({STATE: state(**{**GOOD, "nested_blocksize": 256})}, "weight.absmax is torch.float32"),
    ({STATE: torch.full((9,), 0x5B, dtype=torch.uint8)}, "no description"),
    ({STATE: torch.zeros(1 << 20, dtype=torch.uint8)}, "a description needs few"),
    ({"weight": torch.zeros(96, 128, dtype=torch.uint8)}, "weight has shape"),
    ({"weight.quant_map": torch.zeros(15)}, "weight.quant_map has shape"),
]


@pytest.mark.parametrize(("change", "fault"), BAD)
def test_parts_that_do_not_fit_are_refused(
    kit: SimpleNamespace, tmp_path: Path, change: dict[str, Tensor | None], fault: str
) -> None:
    from safetensors.torch import load_file, save_file

    write(kit, tmp_path / "m", four_bits)
    file = tmp_path / "m/model.safetensors"
    tensors = load_file(file) | {f"{NAME}.{part}": value for part, value in change.items()}
    save_file({name: value for name, value in tensors.items() if value is not None}, file)
    with pytest.raises(DfqError) as caught:
        open_model(tmp_path / "m")
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)
