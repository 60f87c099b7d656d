"""The model that ships: the same W4A16-g32 codes in dfq, llama.cpp, compressed-tensors and the GPTQ layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfrot.data.text import load_text
from dfrot.evaluate.tokens import WindowReader
from dfrot.export import engines
from dfrot.export.check import TOLERANCE, compare, quantize_by_rounding
from dfrot.export.run import export
from dfrot.quant.scheme import QuantScheme
from dfrot.reference import path
from dfrot.runtime.load import load_model
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings

GREEDY = 8


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """R1 and R2 fused, nothing online."""
    out = tmp_path_factory.mktemp("rotated") / "model"
    rotate(path(), out, RotateSettings(method="hadamard", dataset="stdlib", seqlen=512, online=False, gate=False))
    return out


@pytest.fixture(scope="module")
def integers(rotated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_by_rounding(rotated, QuantScheme.parse("w4a16-g32"), tmp_path_factory.mktemp("packed") / "model")


@pytest.fixture(scope="module")
def windows(rotated: Path) -> Tensor:
    return WindowReader(load_text("stdlib", "test"), 256, 3).read(rotated).windows


@pytest.fixture(scope="module")
def ours(integers: Path, windows: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(engines.window_losses(engines.transformers_logits(load_model(integers, torch.float32)), windows))


@pytest.mark.parametrize("target", engines.ENGINES)
def test_perplexity_is_the_same_everywhere(
    target: str,
    integers: Path,
    windows: Tensor,
    ours: list[tuple[Tensor, Tensor]],
    engine: Callable[[str, Path], engines.Logits],
    tmp_path: Path,
) -> None:
    export(integers, target, tmp_path / "out")
    theirs = engine(target, tmp_path / "out")
    found = compare(ours, list(engines.window_losses(theirs, windows)))
    assert abs(found["ratio"] - 1) < TOLERANCE
    assert found["match"]
    assert found["logits"] < (0.02 if target == "gguf" else 1e-4)
    mine = engines.transformers_logits(load_model(integers, torch.float32))
    prompt = windows[0, :64]
    assert engines.greedy_tokens(theirs, prompt, GREEDY) == engines.greedy_tokens(mine, prompt, GREEDY)


def test_scales_of_the_reference_model_fit_float16_exactly(integers: Path, tmp_path: Path) -> None:
    scales = export(integers, "gguf", tmp_path / "out")["scales"]
    assert scales["count"] == 6291456 // 32
    assert scales["rounded"] == 0


def test_the_comparison_notices_other_weights(
    rotated: Path, ours: list[tuple[Tensor, Tensor]], windows: Tensor
) -> None:
    """The 16-bit model is close, and is not taken for the quantized one."""
    dense = list(engines.window_losses(engines.transformers_logits(load_model(rotated, torch.float32)), windows))
    assert not compare(ours, dense)["match"]
