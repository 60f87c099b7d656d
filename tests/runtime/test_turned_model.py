"""The model in which R1 learns: the source model where nothing is rounded, whatever R1 is; gradients reach R1."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dfrot.arch import open_described
from dfrot.rotation.hadamard import random_orthogonal
from dfrot.rotation.refinement.token_quantizer import TokenQuantizer
from dfrot.runtime import trainable_attention, turned_model
from dfrot.runtime.load import load_model
from dfrot.runtime.turned_model import TurnedModel

KINDS = ("llama", "mistral", "qwen2", "qwen3", "granite", "gemma3_text")
EXACT = TokenQuantizer(8)


def turned(source: Path, grid: TokenQuantizer = EXACT, sinks: int = 0) -> TurnedModel:
    _, arch = open_described(source)
    start = random_orthogonal(arch.hidden, 3)
    taps = arch.n_layers * len(arch.spec.rotated_norms)
    means = torch.randn(taps, arch.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return TurnedModel(load_model(source, dtype=torch.float32), arch, start, means, grid, sinks)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (trainable_attention, turned_model):
        monkeypatch.setattr(module, "fast_bfloat16", lambda: False)


@pytest.mark.parametrize("kind", KINDS)
def test_any_rotation_is_the_source_model_where_nothing_is_rounded(
    kind: str, kit: SimpleNamespace, tmp_path: Path, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = kit.build(tmp_path / "source", kind)
    expected = load_model(source, dtype=torch.float32)(ids).logits
    monkeypatch.setattr(turned_model, "rounded", lambda rows, grid: rows)
    student = turned(source)
    with torch.no_grad():
        student.parameters["skew"].normal_(0, 0.1)
        torch.testing.assert_close(student.model(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_rounding_is_that_of_rotated_rows_and_spares_the_first_positions(kit: SimpleNamespace, tmp_path: Path) -> None:
    student = turned(kit.build(tmp_path / "source"), TokenQuantizer(4, clip=0.85), sinks=3)
    student._turn(student.model, ())
    source = student.inputs[1]
    x = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(5))
    out = source(x)
    torch.testing.assert_close(out[:, :3], x[:, :3])
    rotated = (x @ source.matrix * source.sign).flatten(0, 1)
    expected = source.grid.quantize(rotated.detach()) * source.sign @ source.matrix.T
    torch.testing.assert_close(out[:, 3:], expected.view_as(x)[:, 3:])
    assert out is source(x)  # the linears behind a norm share it
    assert (out - x)[:, 3:].norm() / x[:, 3:].norm() > 0.02


def test_the_gradient_is_that_of_the_entries_above_the_diagonal(
    kit: SimpleNamespace, tmp_path: Path, ids: Tensor
) -> None:
    student = turned(kit.build(tmp_path / "source"), TokenQuantizer(4))
    student.model(ids).logits.logsumexp(-1).sum().backward()
    gradient = student.parameters["skew"].grad
    assert gradient is not None
    assert gradient.triu(1).norm() > 0
    assert torch.equal(gradient.tril(), torch.zeros_like(gradient))
    assert [name for name, p in student.model.named_parameters() if p.grad is not None] == []
