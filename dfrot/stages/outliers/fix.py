"""`dfq outliers fix`: remove outliers from a checkpoint, in a new checkpoint, with perplexity before and after.

Every set of fixes is measured twice: unquantized (what the edit costs) and quantized by a recipe (what it gains).
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dfrot.errors import InputError, MismatchError, UnsupportedError
from dfrot.files import read_json
from dfrot.outliers import fixes
from dfrot.outliers.fixes.base import Context
from dfrot.outliers.measure.subject import Subject
from dfrot.outliers.rewrite import rewrite
from dfrot.progress import Progress, silent
from dfrot.stage_folder import open_stage, read_record, refuse_inputs
from dfrot.stages.outliers.measure import measure, prepare
from dfrot.stages.outliers.settings import FixSettings
from dfrot.stages.outliers.trials import FixTrials, apply_all, search
from dfrot.vision import carry as vision

KIND = "outliers-fix"


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
    """Publish the fixed checkpoint of folder `model` as `out`.

    Returns its `stage.json`: what was changed, "before" and "after" and, for a search, every trial. report: a folder or
    file of `dfq outliers` on this checkpoint; None: measure it first.

    Raises UnsupportedError for a rotated or quantized checkpoint, or where a fix has nothing to do."""
    refuse_inputs(out, model, report)
    vision.refuse_vision_part(model, "the rewritten checkpoint")
    measurement = prepare(model, settings.outliers)
    subject = measurement.subject
    if subject.kind != "original" or subject.config is not None:
        raise UnsupportedError(f"{model}: is {subject.kind} by dfq already; fix the original checkpoint")
    given = _read_report(report, subject) if report is not None else None
    request = {
        "model": subject.source.digest(),
        "data": measurement.source,
        "report": None if given is None else given["data"],
        "settings": asdict(settings),
    }
    with open_stage(out, KIND, request, resume=resume, overwrite=overwrite) as stage:
        if not stage.finished:
            measured = given if given is not None else measure(measurement, progress)[0]
            context = Context(subject, measured, measurement.tokens)
            work = stage.folder / "work"
            work.mkdir(exist_ok=True)
            recipe = replace(settings.recipe, dataset=settings.outliers.dataset, seed=settings.outliers.seed)
            trials = FixTrials(context, recipe, settings.quantized, work)
            try:
                if settings.search:
                    names = list(settings.fixes) or fixes.fix_names()
                    chosen, record = search(trials, names, settings.budget, progress)
                else:
                    chosen, record = apply_all(trials, list(settings.fixes), progress)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            rewrite(subject.source, stage.folder, trials.change(chosen))
            stage.publish(record)
    return read_record(out, KIND)


def _read_report(path: Path, subject: Subject) -> dict[str, Any]:
    """The report of `dfq outliers` in a folder or file.

    Raises InputError for another file, MismatchError for a report on another checkpoint."""
    file = path / "report.json" if path.is_dir() else path
    report = read_json(file)
    if not isinstance(report, dict) or "massive" not in report or "model" not in report:
        raise InputError(f"{file}: is no report of dfq outliers; `report` takes its folder", field="report", file=file)
    if report["model"].get("digest") != subject.source.digest():
        message = f"{file}: reports on another checkpoint; run dfq outliers on this one"
        raise MismatchError(message, field="report", file=file)
    return report


__all__ = ["FixSettings", "fix"]
