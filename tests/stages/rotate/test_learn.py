"""`dfq rotate --learn`: R1 learned from predictions is orthogonal and passes the gate, and a killed run resumes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dfrot.errors import InputError, UnsupportedError
from dfrot.hub import resolve_model
from dfrot.rotation.rotation import ROTATION_FILE, load_rotations
from dfrot.stages.rotate import windows
from dfrot.stages.rotate.run import rotate
from dfrot.stages.rotate.settings import RotateSettings

Make = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
LEARN = RotateSettings(dataset="stdlib", seqlen=128, steps=4, transform_windows=1, learn=6)


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = partial(windows.TuneSettings, batch=2, seqlen=64, evaluations=3)
    monkeypatch.setattr(windows, "LEARN_HELD_OUT", 2)
    monkeypatch.setattr(windows, "LEARN_RATE", 1.6e-3)
    monkeypatch.setattr(windows, "TuneSettings", quick)


def test_r1_learns_and_a_killed_run_ends_in_the_same_bytes(
    tmp_path: Path, interrupt_step: Callable[[int], list[float]], contents: Contents
) -> None:
    model = resolve_model("reference")
    record = rotate(model, tmp_path / "whole", LEARN)
    curve, best = record["learning"]["curve"], record["learning"]["best"]
    assert [step for step, _ in curve] == [0, 2, 4, 6]
    assert dict(curve)[best] == min(error for _, error in curve) < curve[0][1]
    refined = rotate(model, tmp_path / "refined", RotateSettings(**{**vars(LEARN), "learn": 0}))
    assert "learning" not in refined
    assert refined["refinement"] == record["refinement"]
    first, second = (load_rotations(tmp_path / name / ROTATION_FILE)["R1"] for name in ("whole", "refined"))
    assert not first.matrix.equal(second.matrix)
    assert first.require_orthogonal() < 1e-12
    assert set(contents(tmp_path / "whole")) == set(contents(tmp_path / "refined"))

    calls = interrupt_step(4)
    with pytest.raises(KeyboardInterrupt):
        rotate(model, tmp_path / "cut", LEARN)
    rotate(model, tmp_path / "cut", LEARN, resume=True)
    assert len(calls) == 4 + 4  # steps 2 to 5, from the state behind step 1
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_mixture_cannot_learn(make: Make, tmp_path: Path) -> None:
    model = make(model_type="mixtral", num_local_experts=4, num_experts_per_tok=2)
    with pytest.raises(UnsupportedError, match="R1 of VLMs and mixtures of experts cannot be learned yet"):
        rotate(model, tmp_path / "out", LEARN)


@pytest.mark.parametrize("method", ["hadamard", "orthogonal", "none"])
def test_only_dfrot_learns(method: str) -> None:
    changed: dict[str, Any] = {**vars(LEARN), "method": method}
    with pytest.raises(InputError, match='`learn` is for `method="dfrot"`'):
        RotateSettings(**changed)
