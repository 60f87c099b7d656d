"""Which files of a folder hold its weights: what transformers would read, or a refusal that says what to remove."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dfrot.checkpoint import Checkpoint
from dfrot.errors import DfqError, InputError, UnsupportedError

A, B = torch.arange(6.0).reshape(2, 3), torch.ones(3)


def sharded(path: Path, shards: dict[str, dict[str, Tensor]], weight_map: dict[str, str] | None = None) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    for file, tensors in shards.items():
        save_file(tensors, path / file)
    names = {name: file for file, tensors in shards.items() for name in tensors} if weight_map is None else weight_map
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return path


def refused(path: Path, kind: type[DfqError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        Checkpoint.open(path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert caught.value.exit_code == 2


def test_a_copy_with_other_values_in_a_second_shard_is_refused(tmp_path: Path) -> None:
    shards = {"one.safetensors": {"a": A}, "two.safetensors": {"b": B, "a": A + 1}}
    path = sharded(tmp_path / "m", shards, {"a": "one.safetensors", "b": "two.safetensors"})
    refused(path, InputError, "tensor a", "one.safetensors", "two.safetensors", "remove one")


@pytest.mark.parametrize("change", [lambda t: t.double(), lambda t: t.reshape(3, 2)])
def test_a_copy_of_another_dtype_or_shape_is_refused(tmp_path: Path, change: Any) -> None:
    shards = {"one.safetensors": {"a": A}, "two.safetensors": {"b": B, "a": change(A)}}
    path = sharded(tmp_path / "m", shards, {"a": "one.safetensors", "b": "two.safetensors"})
    refused(path, InputError, "tensor a", "one.safetensors", "two.safetensors")


def test_a_copy_with_the_same_bytes_is_read_once(tmp_path: Path) -> None:
    shards = {"one.safetensors": {"a": A}, "two.safetensors": {"b": B, "a": A.clone()}}
    checkpoint = Checkpoint.open(sharded(tmp_path / "m", shards, {"a": "one.safetensors", "b": "two.safetensors"}))
    assert torch.equal(checkpoint.read("a"), A)
    assert checkpoint.resolved == ("1 tensors lie in two shards with equal bytes (a): read once",)


def test_tensors_that_the_index_leaves_out_are_read(tmp_path: Path) -> None:
    shards = {"one.safetensors": {"a": A, "b": B}}
    checkpoint = Checkpoint.open(sharded(tmp_path / "m", shards, {"a": "one.safetensors"}))
    assert torch.equal(checkpoint.read("b"), B)
    assert "1 tensors of the shards are not in model.safetensors.index.json (b)" in checkpoint.resolved[0]


def test_two_sets_of_weights_are_refused(tmp_path: Path) -> None:
    path = sharded(tmp_path / "m", {"one.safetensors": {"a": A}})
    save_file({"a": A + 1}, path / "model.safetensors")
    refused(path, InputError, "two sets of weights", "model.safetensors", "remove one")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert torch.equal(Checkpoint.open(path).read("a"), A + 1)


def test_shards_that_nobody_reads_are_said(tmp_path: Path) -> None:
    path = sharded(tmp_path / "m", {"model-00001-of-00001.safetensors": {"a": A}})
    shutil.copy(path / "model-00001-of-00001.safetensors", path / "model-00003-of-00003.safetensors")
    checkpoint = Checkpoint.open(path)
    assert checkpoint.resolved == ("model-00003-of-00003.safetensors: not read, for no index names it",)


def test_the_shards_of_a_distributed_checkpoint_are_refused(tmp_path: Path) -> None:
    path = sharded(tmp_path / "m", {"one.safetensors": {"a": A}})
    shutil.copy(path / "one.safetensors", path / "shard-00000-model-00001-of-00001.safetensors")
    refused(path, UnsupportedError, "shard-00000-model-00001-of-00001.safetensors", "distributed")


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("content", ['{"base_model_name_or_path": "some/base"}', "{}", "not json"])
def test_an_adapter_is_refused(tmp_path: Path, content: str, alone: bool) -> None:
    path = tmp_path / "m"
    if alone:
        path.mkdir()
    else:
        sharded(path, {"one.safetensors": {"a": A}})
    (path / "adapter_config.json").write_text(content)
    refused(path, UnsupportedError, "adapter", "--merge-adapter", *(["'some/base'"] if "base" in content else []))


def test_another_weight_file_in_the_configuration_is_refused(tmp_path: Path) -> None:
    path = sharded(tmp_path / "m", {"one.safetensors": {"a": A}})
    (path / "config.json").write_text('{"transformers_weights": "other.safetensors"}')
    refused(path, UnsupportedError, "transformers_weights")
    (path / "config.json").write_text('{"transformers_weights": null}')
    assert "a" in Checkpoint.open(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32])
def test_dtypes_of_quantized_checkpoints_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.arange(8).to(torch.float32).to(dtype)
    path = sharded(tmp_path / "m", {"one.safetensors": {"a": values}})
    assert torch.equal(Checkpoint.open(path).read("a").float(), values.float())


def test_nan_in_eight_bits_is_refused(tmp_path: Path) -> None:
    values = torch.tensor([1.0, torch.nan]).to(torch.float8_e4m3fn)
    path = sharded(tmp_path / "m", {"one.safetensors": {"a": values}})
    with pytest.raises(InputError, match="tensor a: holds NaN or Inf"):
        Checkpoint.open(path).read("a")
