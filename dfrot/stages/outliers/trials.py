"""Trials of fixes: a checkpoint with some fixes is written, measured and removed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dfrot.errors import UnsupportedError
from dfrot.evaluate.intervals import as_list, ratio_interval
from dfrot.outliers import fixes
from dfrot.outliers.advice import DEFAULT_RECIPE
from dfrot.outliers.fixes.base import Change, Context
from dfrot.outliers.rewrite import rewrite
from dfrot.progress import Progress
from dfrot.stages.outliers.recipe import plain_perplexity, quantized_perplexity
from dfrot.stages.outliers.settings import RecipeSettings

Trial = dict[str, Any]
"""JSON: "fixes", "plain" and, where measured, "quantized" perplexities, each with a paired ratio to the baseline."""


class FixTrials:
    """Measures sets of fixes on one checkpoint; a fix is planned once."""

    def __init__(self, context: Context, recipe: RecipeSettings, quantized: bool, folder: Path) -> None:
        """recipe: of the measurements; quantized: measure the quantized checkpoints too; folder: for checkpoints that
        are made on the way."""
        self.context, self.recipe, self.quantized, self.folder = context, recipe, quantized, folder
        self.source = context.subject.source
        self.planned: dict[str, Change] = {}
        self.baseline: Trial = {}

    def plan(self, name: str) -> Change:
        """The change of one fix `NAME:MODE`. Raises UnsupportedError where it has nothing to do."""
        if name not in self.planned:
            fix, mode = fixes.parse_fix(name)
            self.planned[name] = fix.plan(self.context, mode)
        return self.planned[name]

    def change(self, names: Sequence[str]) -> Change:
        """Several fixes as one change, with their edits in order."""
        combined = Change(exact=all(self.plan(name).exact for name in names))
        for name in names:
            change = self.plan(name)
            for tensor, edits in change.tensors.items():
                for edit in edits:
                    combined.edit(tensor, edit)
            combined.resets += change.resets
            combined.prefix = change.prefix or combined.prefix
            combined.account[name] = change.account
        return combined

    def measure(self, names: Sequence[str]) -> Trial:
        """Perplexities of the checkpoint with these fixes, paired with the baseline's where there is one."""
        change = self.change(names)
        checkpoint = self.source.path
        if names:
            checkpoint = self.folder / "trial"
            shutil.rmtree(checkpoint, ignore_errors=True)
            checkpoint.mkdir()
            rewrite(self.source, checkpoint, change)
        trial: Trial = {"fixes": list(names), "plain": plain_perplexity(checkpoint, self.recipe, change.prefix)}
        if self.quantized:
            # Resets name channels of the unrotated stream: such a checkpoint is quantized without a rotation.
            rotation = "none" if change.resets else DEFAULT_RECIPE.rotation
            recipe = replace(DEFAULT_RECIPE, rotation=rotation, sink_tokens=len(change.prefix))
            folder = self.folder / "made"
            trial["quantized"] = quantized_perplexity(checkpoint, recipe, self.recipe, folder, change.prefix)
            trial["rotation"] = rotation
        for kind in ("plain", "quantized"):
            if kind in trial and kind in self.baseline:
                before, after = (
                    torch.tensor(side[kind]["nll"], dtype=torch.float64) for side in (self.baseline, trial)
                )
                ratio, interval = ratio_interval(after, before)
                trial[kind] |= {"ratio": ratio, "ratio_ci": as_list(interval)}
        return trial

    def record(self, names: list[str], after: Trial, trials: list[Trial]) -> dict[str, Any]:
        """What was changed and what it costs and gains, for `stage.json`. trials: of a search."""
        change = self.change(names)
        return {
            "fixes": names,
            "exact": change.exact,
            "account": change.account,
            "sink_tokens": len(change.prefix),
            "before": self.baseline,
            "after": after,
            "trials": trials,
        }


def apply_all(trials: FixTrials, names: list[str], progress: Progress) -> tuple[list[str], dict[str, Any]]:
    """Measure the checkpoint before and after all of `names`; returns them and the record."""
    for name in names:
        trials.plan(name)  # refuses before anything is measured
    progress("trials", 0, 2)
    trials.baseline = trials.measure([])
    progress("trials", 1, 2)
    after = trials.measure(names)
    progress("trials", 2, 2)
    return names, trials.record(names, after, [])


def search(
    trials: FixTrials, candidates: list[str], budget: int, progress: Progress
) -> tuple[list[str], dict[str, Any]]:
    """Add fixes one at a time, the best first, while the quantized perplexity falls and the budget of trials lasts.

    Returns the chosen fixes and the record, with every trial and the candidates that were skipped."""
    total = budget + 1
    progress("trials", 0, total)
    trials.baseline = trials.measure([])
    usable, skipped = _usable(trials, candidates)
    chosen: list[str] = []
    measured: list[Trial] = []
    best = trials.baseline
    while len(measured) < budget:
        best_of_round: Trial | None = None
        used = {name.split(":")[0] for name in chosen}
        for name in [name for name in usable if name.split(":")[0] not in used]:
            if len(measured) >= budget:
                break
            trial = trials.measure([*chosen, name])
            measured.append(trial)
            progress("trials", len(measured) + 1, total)
            if best_of_round is None or _quantized(trial) < _quantized(best_of_round):
                best_of_round = trial
        if best_of_round is None or _quantized(best_of_round) >= _quantized(best):
            break
        best, chosen = best_of_round, best_of_round["fixes"]
    progress("trials", total, total)
    return chosen, trials.record(chosen, best, measured) | {"skipped": skipped}


def _usable(trials: FixTrials, candidates: list[str]) -> tuple[list[str], dict[str, str]]:
    """The candidates that have something to do, and the reasons of the others."""
    usable: list[str] = []
    skipped: dict[str, str] = {}
    for name in candidates:
        try:
            trials.plan(name)
            usable.append(name)
        except UnsupportedError as error:
            skipped[name] = str(error)
    return usable, skipped


def _quantized(trial: Trial) -> float:
    """Perplexity of the quantized checkpoint."""
    return float(trial["quantized"]["perplexity"])
