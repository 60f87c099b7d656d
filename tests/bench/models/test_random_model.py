"""Random checkpoints in packed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dfrot.bench.models.presets import preset
from dfrot.bench.models.random_model import random_checkpoint

QUICK: dict[str, Any] = {"prefill": 16, "decode": 2, "repeats": 1}


@pytest.mark.parametrize("scheme", ["w4a8kv4", "w4a16-g64", "w4a4kv4-wasym"])
def test_random_checkpoints_compute_finite_logits(tmp_path: Path, scheme: str) -> None:
    from dfrot.runtime.load import load_model

    model = load_model(random_checkpoint(tmp_path / "model", preset("tiny"), scheme))
    logits = model(torch.arange(12)[None]).logits
    assert bool(torch.isfinite(logits).all())
    assert float(logits.float().std()) > 0.1


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        random_checkpoint(tmp_path / name, preset("tiny"), "w4a8kv4", seed=3)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
