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


@pytest.mark.parametrize("arch", ["dream", "eagle3", "dream, trimmed"])
def test_a_killed_run_ends_in_the_same_bytes(
    targets: Get, kit: SimpleNamespace, tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = targets("llama-kv4", (1, 2, 3) if arch == "eagle3" else ())
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


# --- what belongs together --------------------------------------------------------------------------------------


def test_options_are_checked() -> None:
    for bad in ({"epochs": 0}, {"batch": 0}, {"lr": -1.0}, {"ttt_steps": -1}):
        with pytest.raises(InputError):
            TrainSettings(**bad)
