"""Training: a killed run ends in the same bytes, and a trained draft is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfrot.draft.models.build import build
from dfrot.draft.training.corpus import of_windows
from dfrot.draft.training.schedule import Schedule
from dfrot.draft.training.settings import TrainSettings
from dfrot.draft.training.sources import LiveFeatures
from dfrot.draft.training.train_state import STATE
from dfrot.draft.training.trainer import Trainer
from dfrot.errors import InputError
from dfrot.generation.target import Target

Get = Callable[..., Target]


def online(target: Target, select: str = "sample") -> LiveFeatures:
    """Text that the target generated, so that there is something to learn."""
    from dfrot.draft.training.regenerate import continuations

    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, 96, (12, 6), generator=generator)
    rows = torch.cat([prompts, continuations(target, prompts, 18)], 1)
    return LiveFeatures(target, of_windows(rows[:8], 6), of_windows(rows[8:], 6), select)


def trainer(target: Target, draft: Any, folder: Path, **changes: Any) -> Trainer:
    options = TrainSettings(**{"epochs": 6, "batch": 4, "evaluations": 3, "bf16": False, "lr": 3e-3, **changes})
    return Trainer(draft, online(target), target.embed, target.head, options, folder)


def random_draft(kit: SimpleNamespace, arch: str) -> Any:
    """A draft to train; `dream, trimmed` proposes a third of the tokens."""
    name, _, trimmed = arch.partition(", ")
    draft = kit.random_draft(name)
    if trimmed:
        draft = build(replace(draft.config, draft_vocab_size=32))
        draft.choose_tokens(torch.arange(0, 96, 3))
        draft.load_state_dict(kit.random_draft(name).state_dict(), strict=False)
    return draft.requires_grad_(True)


@pytest.mark.parametrize("arch", ["dream", "eagle3", "dflash", "dream, trimmed", "dflash, trimmed"])
def test_a_killed_run_ends_in_the_same_bytes(
    targets: Get, kit: SimpleNamespace, tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = targets("llama-kv4", (1, 2, 3) if "dream" not in arch else ())
    uninterrupted, parts = tmp_path / "whole", tmp_path / "parts"
    uninterrupted.mkdir(), parts.mkdir()
    draft = random_draft(kit, arch)
    history = trainer(target, draft, uninterrupted).run()

    class Killed(Exception):
        pass

    for after in (2, 9):  # before the first state is saved again, and between two others
        broken = trainer(target, random_draft(kit, arch), parts)
        step = broken._step

        def dying(number: int, after: int = after, step: Any = step) -> Any:
            if number == after:
                raise Killed
            return step(number)

        monkeypatch.setattr(broken, "_step", dying)
        with pytest.raises(Killed):
            broken.run()
    resumed = random_draft(kit, arch)
    assert trainer(target, resumed, parts).run() == history
    assert (parts / STATE).read_bytes() == (uninterrupted / STATE).read_bytes()
    for name, value in draft.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


def test_training_helps(targets: Get, kit: SimpleNamespace, tmp_path: Path) -> None:
    target, draft = targets("llama-kv4"), kit.random_draft().requires_grad_(True)
    history = trainer(target, draft, tmp_path, epochs=20, lr=5e-3).run()
    assert history[-1]["held_out_kl"][0] < history[0]["held_out_kl"][0] - 0.1
    best = max(record["simulated_tau"] for record in history)
    run = trainer(target, draft, tmp_path / "no-state")
    assert run.measure().simulated_tau == pytest.approx(best)


# --- a budget of hours --------------------------------------------------------------------------------------------


def test_the_steps_of_a_budget() -> None:
    """What is left behind the probe's six steps and five evaluations, never less than one step."""
    assert Schedule.fitting(0.1, 4, 2.0, 10.0).steps == (360 - 12 - 50) // 2
    assert Schedule.fitting(1e-6, 4, 2.0, 10.0).steps == 1


def test_a_budget_decides_the_steps_and_a_resumed_run_keeps_them(
    targets: Get, kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Schedule, "fitting", lambda hours, *rest: Schedule(hours, 7, 0.5, 0.25))
    target = targets("llama-kv4")
    run = trainer(target, kit.random_draft().requires_grad_(True), tmp_path, epochs=2, hours=0.001)
    step = run._step

    def dying(number: int) -> Any:
        if run.history and number == 5:
            raise KeyboardInterrupt
        return step(number)

    monkeypatch.setattr(run, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    monkeypatch.setattr(Schedule, "fitting", lambda *_: pytest.fail("a resumed run plans nothing"))
    resumed = trainer(target, kit.random_draft().requires_grad_(True), tmp_path, epochs=2, hours=0.001)
    history = resumed.run()
    assert [record["step"] for record in history] == [0, 3, 6, 7]
    assert [record["seconds"] > 0 for record in history] == [False, True, True, True]
    plain = trainer(target, kit.random_draft().requires_grad_(True), tmp_path / "plain", epochs=3.5)
    (tmp_path / "plain").mkdir()
    same = plain.run()
    assert [record["held_out_kl"] for record in history] == [record["held_out_kl"] for record in same]


# --- what belongs together --------------------------------------------------------------------------------------


def test_options_are_checked() -> None:
    for bad in ({"epochs": 0}, {"batch": 0}, {"lr": -1.0}, {"ttt_steps": -1}, {"hours": 1.0, "epochs": 3.0}):
        with pytest.raises(InputError):
            TrainSettings(**bad)
