"""Fixes planned on the reference model: exact ones keep the function, edits land where the report says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dfrot import reference
from dfrot.checkpoint import Checkpoint
from dfrot.outliers import fixes
from dfrot.outliers.rewrite import rewrite
from dfrot.runtime.load import load_model
from dfrot.stages.outliers.measure import OutlierSettings, measure, outliers, prepare

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="module")
def planned() -> Callable[[str], fixes.Change]:
    """plan("gains:fold") on the reference model, measured once."""
    settings = OutlierSettings(dataset="stdlib", seqlen=256, rounds=0, perplexity=False)
    measurement = prepare(reference.path(), settings)
    report, _ = measure(measurement, lambda *_: None)
    context = fixes.Context(measurement.subject, report, measurement.tokens)

    def plan(name: str) -> fixes.Change:
        chosen, mode = fixes.parse_fix(name)
        return chosen.plan(context, mode)

    return plan


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = load_model(folder, torch.float32)(input_ids=tokens).logits
    return out


def changed(before: Path, after: Path, tokens: torch.Tensor) -> float:
    """Relative change of the logits."""
    a, b = logits(before, tokens), logits(after, tokens)
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("name", ["gains:fold", "gains:smooth", "query:balance"])
def test_exact_fixes_keep_the_function(planned: Callable[[str], fixes.Change], tmp_path: Path, name: str) -> None:
    change = planned(name)
    assert change.exact
    rewrite(Checkpoint.open(reference.path()), tmp_path, change)
    tokens = torch.randint(0, 4096, (1, 64))
    assert 0 < changed(reference.path(), tmp_path, tokens) < 0.02  # edited weights are rounded to bfloat16 again


def test_folding_leaves_no_channel_outlier(planned: Callable[[str], fixes.Change], tmp_path: Path) -> None:
    settings = OutlierSettings(dataset="stdlib", seqlen=256, rounds=0, ablate=False)
    for name in ("gains:fold", "gains:smooth"):
        folder = tmp_path / name.replace(":", "-")
        folder.mkdir()
        rewrite(Checkpoint.open(reference.path()), folder, planned(name))
        assert outliers(folder, None, settings)["channel_outliers"] == []


def test_uncompensated_gains_change_it(planned: Callable[[str], fixes.Change], tmp_path: Path) -> None:
    change = planned("gains:mean")
    assert not change.exact
    rewrite(Checkpoint.open(reference.path()), tmp_path, change)
    assert changed(reference.path(), tmp_path, torch.randint(0, 4096, (1, 64))) > 0.05


def test_massive_modes_edit_the_embedding_entries(
    planned: Callable[[str], fixes.Change], tmp_path: Path, planted_outliers: SimpleNamespace
) -> None:
    name = "model.embed_tokens.weight"
    source = Checkpoint.open(reference.path())
    before = source.read(name)
    for mode in ("mean", "zero", "smooth"):
        folder = tmp_path / mode
        folder.mkdir()
        rewrite(source, folder, planned(f"massive:{mode}"))
        after = Checkpoint.open(folder).read(name)
        for channel, value in planted_outliers.massive.items():
            for token in planted_outliers.tokens & {0, 4095}:
                got = float(after[token, channel])
                assert got == {"mean": pytest.approx(value), "zero": 0.0}.get(
                    mode, pytest.approx(50.0 * value / abs(value))
                )
        after[0, list(planted_outliers.massive)] = before[0, list(planted_outliers.massive)]
        after[4095, list(planted_outliers.massive)] = before[4095, list(planted_outliers.massive)]
        assert torch.equal(after, before)
