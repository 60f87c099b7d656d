"""Every architecture: the tensors of a file are those of the model that was written."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from dfrot.inputs.gguf.model import read_model
from dfrot.inputs.gguf.tensors import read_rows


def original(state: dict[str, Tensor], key: str) -> Tensor:
    """A tensor of the model. key: as in its publisher's files, which store experts one by one."""
    match = re.fullmatch(r"(.*)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(.*)\.weight", key)
    if match is None:
        return state[key.replace("block_sparse_moe", "mlp")]
    block, expert, linear = f"{match[1]}.mlp.experts", int(match[2]), match[3]
    if linear in ("w2", "down_proj"):
        return state[f"{block}.down_proj"][expert]
    gate, up = state[f"{block}.gate_up_proj"][expert].chunk(2)
    return gate if linear in ("w1", "gate_proj") else up


def test_every_tensor(name: str, kit: SimpleNamespace, tmp_path: Path) -> None:
    model = kit.random_model(name)
    found = read_model(kit.write_gguf(tmp_path / "model.gguf", model))
    assert found.dtype == torch.float32
    read = 0
    for key, rows in found.tensors.items():
        value, expected = read_rows(rows, 0, 1 << 40, torch.float32), original(model.state_dict(), key)
        if "gemma" in name and "norm" in key:  # 1 was added and subtracted in float32
            torch.testing.assert_close(value, expected, rtol=0, atol=1.2e-7)
        else:
            assert torch.equal(value, expected), key
        read += value.numel()
    assert read == sum(parameter.numel() for parameter in model.parameters())
