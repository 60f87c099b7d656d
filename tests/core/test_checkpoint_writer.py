from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dfrot.checkpoint import Checkpoint
from dfrot.checkpoint_writer import SafetensorsWriter, TensorPlan
from dfrot.errors import InputError

PLAN = [
    TensorPlan("a", torch.bfloat16, (3, 5)),
    TensorPlan("b", torch.float32, (7,)),
    TensorPlan("empty", torch.float32, (0, 4)),
    TensorPlan("c", torch.uint8, (2, 3, 2)),
]


def values() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {t.name: (torch.rand(t.shape, generator=generator) * 100).to(t.dtype) for t in PLAN}


def test_the_safetensors_library_reads_it_back(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path, PLAN, metadata={"who": "test"})
    for name, tensor in values().items():
        writer.write(name, tensor)
    writer.sync()
    read = load_file(tmp_path / "model.safetensors")
    assert set(read) == set(values())
    assert all(torch.equal(read[name], tensor) for name, tensor in values().items())
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_shards_and_index(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path, PLAN, shard_bytes=30)
    for name, tensor in values().items():
        writer.write(name, tensor)
    (tmp_path / "config.json").write_text("{}")
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 3 * 5 * 2 + 7 * 4 + 12
    checkpoint = Checkpoint.open(tmp_path)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in values().items())


def test_any_order_any_interruption_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    writer = SafetensorsWriter(tmp_path / "one", PLAN)
    for name, tensor in values().items():
        writer.write(name, tensor)
    writer = SafetensorsWriter(tmp_path / "two", PLAN)
    writer.write("c", values()["c"])
    writer.write_rows("a", 2, values()["a"][2:])
    writer.write("b", torch.zeros(7))  # an interrupted run left nonsense here
    writer = SafetensorsWriter(tmp_path / "two", PLAN)
    writer.write_rows("a", 0, values()["a"][:2])
    writer.write("b", values()["b"])
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_non_contiguous_tensor_is_written_in_order(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path, [TensorPlan("w", torch.float32, (3, 2))])
    writer.write("w", torch.arange(6.0).reshape(2, 3).T)
    assert load_file(tmp_path / "model.safetensors")["w"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_what_does_not_fit_the_plan_is_refused(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path, PLAN)
    with pytest.raises(InputError, match=r"tensor b: got torch.float64 \(7,\), planned torch.float32 \(7,\)"):
        writer.write("b", torch.zeros(7, dtype=torch.float64))
    with pytest.raises(InputError, match="tensor b: got"):
        writer.write("b", torch.zeros(8))
    for begin, rows in ((2, torch.zeros(2, 5)), (0, torch.zeros(1, 4)), (0, torch.zeros(1, 5))):
        dtype = torch.float32 if rows.shape == (1, 5) else torch.bfloat16
        with pytest.raises(InputError, match="rows do not fit"):
            writer.write_rows("a", begin, rows.to(dtype))


def test_data_starts_aligned(tmp_path: Path) -> None:
    for count in range(1, 9):
        SafetensorsWriter(tmp_path, [TensorPlan("x" * count, torch.float32, (1,))], stem=f"s{count}")
        size = int.from_bytes((tmp_path / f"s{count}.safetensors").read_bytes()[:8], "little")
        assert size % 8 == 0
