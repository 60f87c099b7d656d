"""FP8: every grid of scales that is found in the wild, against the format's definition computed weight by weight."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfrot.errors import DfqError
from dfrot.inputs import open_model

NAME = "model.layers.0.mlp.gate_proj"  # 192 x 128


def e4m3(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100).to(torch.float8_e4m3fn)


def scales(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.01 + 0.001


def folder_with(kit: SimpleNamespace, folder: Path, parts: dict[str, Tensor], entry: dict[str, Any]) -> Path:
    """A model with one FP8 linear."""
    tensors = kit.dense_tensors()
    del tensors[f"{NAME}.weight"]
    tensors |= {f"{NAME}.{part}": value for part, value in parts.items()}
    return Path(kit.write_folder(folder, tensors, {"quant_method": "fp8", **entry}))


GRIDS: dict[str, tuple[str, Tensor, list[int] | None, tuple[int, int]]] = {
    "blocks, cut at the edge": ("weight_scale_inv", scales(2, 1), [128, 128], (128, 128)),
    "blocks of 48 x 40": ("weight_scale_inv", scales(4, 4), [48, 40], (48, 40)),
    "channel": ("weight_scale", scales(192, 1), None, (1, 128)),
    "channel, flat": ("weight_scale", scales(192), None, (1, 128)),
    "tensor": ("weight_scale_inv", scales(1), None, (192, 128)),
    "tensor, scalar": ("weight_scale", scales(), None, (192, 128)),
    "blocks in bf16": ("weight_scale_inv", scales(2, 1).bfloat16(), [128, 128], (128, 128)),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_every_weight_is_its_code_times_its_scale(kit: SimpleNamespace, tmp_path: Path, grid: str) -> None:
    part, scale, block, step = GRIDS[grid]
    codes = e4m3((192, 128))
    entry = {"weight_block_size": block, "activation_scheme": "static"}
    folder = folder_with(kit, tmp_path / "m", {"weight": codes, part: scale, "input_scale": torch.tensor(0.5)}, entry)
    values = scale.float().reshape(-(-192 // step[0]), -(-128 // step[1]))
    expected = torch.stack(
        [
            torch.stack([codes[i, j].float() * values[i // step[0], j // step[1]] for j in range(128)])
            for i in range(192)
        ]
    )
    view = open_model(folder)
    assert torch.equal(open_model(folder, torch.float32).read(f"{NAME}.weight"), expected)
    assert torch.equal(view.read(f"{NAME}.weight"), expected.bfloat16())
    assert torch.equal(view.read_rows(f"{NAME}.weight", 100, 150), expected[100:150].bfloat16())
    assert f"{NAME}.input_scale" not in view.entries


def test_exponents_as_scales(kit: SimpleNamespace, tmp_path: Path) -> None:
    exponents = torch.tensor([[120], [131]], dtype=torch.uint8)
    codes = e4m3((192, 128))
    entry = {"weight_block_size": [128, 128]}
    for number, stored in enumerate((exponents, exponents.view(torch.float8_e8m0fnu))):
        folder = folder_with(kit, tmp_path / str(number), {"weight": codes, "weight_scale_inv": stored}, entry)
        expected = codes.float() * torch.tensor([2.0**-7] * 128 + [16.0] * 64)[:, None]
        assert torch.equal(open_model(folder, torch.float32).read(f"{NAME}.weight"), expected)


BAD: list[tuple[dict[str, Tensor], Any, str]] = [
    ({}, [128, 128], "weight_scale_inv is missing"),
    ({"weight_scale_inv": scales(3, 1)}, [128, 128], "the codes need [2, 1]"),
    ({"weight_scale_inv": scales(2, 1).double()}, [128, 128], "is torch.float64"),
    ({"weight_scale_inv": scales(2, 1)}, None, "states no weight_block_size"),
    ({"weight_scale_inv": scales(2, 1)}, [128, 0], "weight_block_size '[128, 0]' is not two sizes"),
    ({"weight_scale_inv": scales(2, 1)}, "128", "weight_block_size '128' is not two sizes"),
    ({"weight_scale_inv": scales(2, 1)}, [True, 128], "is not two sizes"),
]


@pytest.mark.parametrize(("parts", "block", "fault"), BAD)
def test_scales_that_do_not_fit_are_refused(
    kit: SimpleNamespace, tmp_path: Path, parts: dict[str, Tensor], block: Any, fault: str
) -> None:
    entry = {"weight_block_size": block}
    folder = folder_with(kit, tmp_path / "m", {"weight": e4m3((192, 128)), **parts}, entry)
    with pytest.raises(DfqError) as caught:
        open_model(folder)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_no_scale_explains_are_refused(kit: SimpleNamespace, tmp_path: Path) -> None:
    """Integers under a name of a weight, or FP8 where the configuration says something else."""
    for number, value in enumerate((torch.ones(192, 128, dtype=torch.int8), e4m3((192, 128)))):
        folder = folder_with(kit, tmp_path / str(number), {"weight": value}, {"quant_method": "awq", "bits": 4})
        with pytest.raises(DfqError, match=f"tensor {NAME}.weight is torch.* and has no scale that awq defines"):
            open_model(folder)
    damaged = e4m3((192, 128))
    damaged.view(torch.uint8)[5, 5] = 0x7F  # NaN
    folder = folder_with(
        kit, tmp_path / "nan", {"weight": damaged, "weight_scale_inv": scales(2, 1)}, {"weight_block_size": [128, 128]}
    )
    with pytest.raises(DfqError, match=f"tensor {NAME}.weight: holds NaN or Inf"):
        open_model(folder).read(f"{NAME}.weight")
