"""The order of rows in a GGUF file."""

from __future__ import annotations

import pytest
import torch

from dfrot.export.gguf.tensors import interleave

gguf = pytest.importorskip("gguf")


def test_interleaving_makes_neighbours_of_rope_pairs() -> None:
    rows = torch.arange(2 * 8).view(16, 1)
    assert interleave(rows, 2)[:8, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert interleave(rows, 2)[8:, 0].tolist() == [8, 12, 9, 13, 10, 14, 11, 15]
