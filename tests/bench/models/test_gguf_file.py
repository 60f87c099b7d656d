"""Random GGUF files for llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dfrot.arch import describe
from dfrot.bench.models import gguf_file
from dfrot.bench.models.presets import preset

QUICK: dict[str, Any] = {"prefill": 16, "decode": 2, "repeats": 1}


def test_gguf_holds_every_tensor_at_four_bits(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    arch = describe(preset("tiny"))
    reader = gguf.GGUFReader(gguf_file.write_random_gguf(tmp_path / "peer.gguf", arch))
    shapes = dict(gguf_file.tensor_shapes(arch))
    assert {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors} == shapes
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert all(kind == ("F32" if len(shapes[name]) == 1 else "Q4_0") for name, kind in kinds.items())
