"""`dfq outliers fix`: remove outliers from a checkpoint, in a new checkpoint, with perplexity before and after.

Every fix is measured twice: as it is (what the edit itself costs) and quantized by a recipe (what it buys). `search`
adds fixes one at a time, the best first, as long as the quantized perplexity falls and the budget of trials lasts.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dfrot.errors import InputError, MismatchError, UnsupportedError
from dfrot.evaluate.intervals import ratio_interval
from dfrot.files import read_json
from dfrot.outliers import fixes
from dfrot.outliers.advice import DEFAULT_RECIPE
from dfrot.outliers.fixes.base import Change, Context
from dfrot.outliers.measure.subject import Subject
from dfrot.outliers.rewrite import rewrite
from dfrot.stage_folder import Progress, open_stage, read_record, silent
from dfrot.stages.outliers.measure import OutlierSettings, measure, prepare
from dfrot.stages.outliers.recipe import RecipeSettings, plain_perplexity, quantized_perplexity
from dfrot.vision import carry as vision

KIND = "outliers-fix"


@dataclass(frozen=True)
class FixSettings:
    """fixes: `NAME:MODE`, applied in order; with search the candidates (none: all). outliers: how the report is made
    where none is given. recipe: quantized measurements (None of them with quantized=False). budget: trials of a
    search."""

    fixes: tuple[str, ...] = ()
    outliers: OutlierSettings = field(default_factory=lambda: OutlierSettings(perplexity=False))
    recipe: RecipeSettings = field(default_factory=RecipeSettings)
    quantized: bool = True
    search: bool = False
    budget: int = 12

    def __post_init__(self) -> None:
        for name in self.fixes:
            fixes.parse_fix(name)
        if not self.fixes and not self.search:
            raise InputError(f"give --fix NAME (of {', '.join(fixes.fix_names())}), or --search")
        if self.budget < 1:
            raise InputError(f"--budget {self.budget}: at least one trial is needed")
        if self.search and not self.quantized:
            raise InputError("--search compares quantized perplexities; leave out --no-quantized")


def fix(
    model: Path,
    out: Path,
    settings: FixSettings,
    report: Path | None = None,
    *,
    progress: Progress = silent,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish the fixed checkpoint of folder `model` as `out`; returns its `stage.json`: what was changed, and
    "before", "after" and, for a search, every trial. `report`: a folder or file of `dfq outliers` on this checkpoint.

    Raises UnsupportedError for a rotated or quantized checkpoint (fix the original), or where a fix finds nothing."""
    vision.refuse_vision_part(model, "the rewritten checkpoint")
    subject, tokens, source, decode = prepare(model, settings.outliers)
    if subject.kind != "original" or subject.config is not None:
        raise UnsupportedError(f"{model}: is {subject.kind} by dfq already; fix the original checkpoint")
    given = _given(report, subject) if report is not None else None
    request = {
        "model": subject.source.digest(),
        "data": source,
        "report": None if given is None else given["data"],
        "settings": asdict(settings),
    }
    with open_stage(out, KIND, request, resume=resume, overwrite=overwrite) as stage:
        if not stage.finished:
            found = (
                given if given is not None else measure(subject, tokens, source, decode, settings.outliers, progress)[0]
            )
            recipe = replace(settings.recipe, dataset=settings.outliers.dataset, seed=settings.outliers.seed)
            work = _Work(
                subject, Context(subject, found, tokens), replace(settings, recipe=recipe), stage.folder / "work"
            )
            try:
                chosen, evidence = work.all(progress)
            finally:
                shutil.rmtree(work.folder, ignore_errors=True)
            rewrite(subject.source, stage.folder, work.change(chosen))
            stage.publish(evidence)
    return read_record(out, KIND)


def _given(path: Path, subject: Subject) -> dict[str, Any]:
    file = path / "report.json" if path.is_dir() else path
    report = read_json(file)
    if not isinstance(report, dict) or "massive" not in report or "model" not in report:
        raise InputError(f"{file}: is no report of dfq outliers; give its --out folder")
    if report["model"].get("digest") != subject.source.digest():
        raise MismatchError(f"{file}: reports on another checkpoint; run dfq outliers on this one")
    return report


class _Work:
    """Trials of one run; a trial is a set of fixes, written, measured, removed."""

    def __init__(self, subject: Subject, context: Context, settings: FixSettings, folder: Path) -> None:
        self.subject, self.context, self.settings, self.folder = subject, context, settings, folder
        self.planned: dict[str, Change] = {}
        self.baseline: dict[str, Any] = {}

    def all(self, progress: Progress) -> tuple[list[str], dict[str, Any]]:
        """The chosen fixes and the evidence."""
        self.folder.mkdir(exist_ok=True)
        settings = self.settings
        if not settings.search:
            for name in settings.fixes:
                self.plan(name)  # refuses before anything is measured
        total = settings.budget + 1 if settings.search else 2
        progress("trials", 0, total)
        self.baseline = self.trial([])
        if not settings.search:
            progress("trials", 1, total)
            after = self.trial(list(settings.fixes))
            progress("trials", total, total)
            return list(settings.fixes), self._evidence(list(settings.fixes), after, [])
        return self._search(progress, total)

    def plan(self, name: str) -> Change:
        """The change of one fix, planned once."""
        if name not in self.planned:
            one, mode = fixes.parse_fix(name)
            self.planned[name] = one.plan(self.context, mode)
        return self.planned[name]

    def change(self, names: Sequence[str]) -> Change:
        """Several fixes as one change, edits in order."""
        whole = Change(exact=all(self.plan(name).exact for name in names))
        for name in names:
            part = self.plan(name)
            for tensor, edits in part.tensors.items():
                for edit in edits:
                    whole.edit(tensor, edit)
            whole.resets += part.resets
            whole.prefix = part.prefix or whole.prefix
            whole.account[name] = part.account
        return whole

    def trial(self, names: Sequence[str]) -> dict[str, Any]:
        """Perplexities of the checkpoint with these fixes, paired with the baseline's."""
        change = self.change(names)
        target = self.subject.source.path
        if names:
            target = self.folder / "trial"
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            rewrite(self.subject.source, target, change)
        recipe = self.settings.recipe
        result: dict[str, Any] = {"fixes": list(names), "plain": plain_perplexity(target, recipe, change.prefix)}
        if self.settings.quantized:
            # resets name channels, and a rotation has none: such a checkpoint is quantized as it stands
            how = replace(DEFAULT_RECIPE, rotation="none") if change.resets else DEFAULT_RECIPE
            how = replace(how, sink_tokens=len(change.prefix))
            result["quantized"] = quantized_perplexity(target, how, recipe, self.folder / "made", change.prefix)
            result["rotation"] = how.rotation
        for kind in ("plain", "quantized"):
            if kind in result and kind in self.baseline:
                first, own = (torch.tensor(one[kind]["nll"], dtype=torch.float64) for one in (self.baseline, result))
                ratio, interval = ratio_interval(own, first)
                result[kind] |= {"ratio": ratio, "ratio_ci": None if interval is None else list(interval)}
        return result

    def _search(self, progress: Progress, total: int) -> tuple[list[str], dict[str, Any]]:
        names = list(self.settings.fixes) or fixes.fix_names()
        trials: list[dict[str, Any]] = []
        skipped: dict[str, str] = {}
        candidates = []
        for name in names:
            try:
                self.plan(name)
                candidates.append(name)
            except UnsupportedError as error:
                skipped[name] = str(error)
        chosen: list[str] = []
        best = self.baseline
        while len(trials) < self.settings.budget:
            round_best: dict[str, Any] | None = None
            for name in [one for one in candidates if one.split(":")[0] not in {c.split(":")[0] for c in chosen}]:
                if len(trials) >= self.settings.budget:
                    break
                found = self.trial([*chosen, name])
                trials.append(found)
                progress("trials", len(trials) + 1, total)
                if round_best is None or _value(found) < _value(round_best):
                    round_best = found
            if round_best is None or _value(round_best) >= _value(best):
                break
            best, chosen = round_best, round_best["fixes"]
        progress("trials", total, total)
        return chosen, self._evidence(chosen, best, trials) | {"skipped": skipped}

    def _evidence(self, chosen: list[str], after: dict[str, Any], trials: list[dict[str, Any]]) -> dict[str, Any]:
        change = self.change(chosen)
        return {
            "fixes": chosen,
            "exact": change.exact,
            "account": change.account,
            "sink_tokens": len(change.prefix),
            "before": self.baseline,
            "after": after,
            "trials": trials,
        }


def _value(trial: dict[str, Any]) -> float:
    return float(trial["quantized"]["perplexity"])


__all__ = ["FixSettings", "fix"]
