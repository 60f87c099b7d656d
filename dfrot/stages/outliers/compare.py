"""`dfq outliers A B`: two checkpoints measured on the same tokens, such as one before and after a rotation."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dfrot.errors import MismatchError
from dfrot.files import read_json, write_json
from dfrot.outliers.report.side_by_side import difference_rows, write_comparison
from dfrot.progress import Progress, silent
from dfrot.ranks.shared_stage import open_shared_stage
from dfrot.ranks.single import SINGLE, Ranks
from dfrot.stage_folder import refuse_inputs
from dfrot.stages.outliers.measure import FORMAT, PAGE, REPORT, MeasurementPlan, measure, prepare
from dfrot.stages.outliers.settings import OutlierSettings
from dfrot_kernels.memory import release_memory

KIND = "outliers-compare"


def compare(
    first: Path,
    second: Path,
    out: Path | None,
    settings: OutlierSettings,
    *,
    progress: Progress = silent,
    ranks: Ranks = SINGLE,
    resume: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure both checkpoints on the same tokens. Returns both reports ("a", "b") and the table of their figures
    ("rows"); published in folder `out` unless None. ranks: as for `outliers`.

    Raises MismatchError when the two tokenizers read the text differently."""
    plans = prepare(first, settings), prepare(second, settings)
    tokens, others = plans[0].tokens, plans[1].tokens
    if tokens.shape != others.shape or not bool((tokens == others).all()):
        raise MismatchError(f"{second}: its tokenizer reads {settings.dataset} differently from that of {first}")
    if out is None:
        return _measure_both(*plans, progress, ranks)[0]
    refuse_inputs(out, first, second)
    digests = [plan.subject.source.digest() for plan in plans]
    request = {"models": digests, "data": plans[0].source, "settings": asdict(settings)}
    with open_shared_stage(ranks, out, KIND, request, resume, overwrite) as stage:
        if not stage.finished:
            report, maps = _measure_both(*plans, progress, ranks)
            if ranks.first:
                write_json(stage.folder / REPORT, report)
                write_comparison(stage.folder, report, maps)
            stage.publish({"report": REPORT, "page": PAGE})
            return report
    return dict(read_json(out / REPORT))


def _measure_both(
    first: MeasurementPlan, second: MeasurementPlan, progress: Progress, ranks: Ranks
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report, and the data of the pictures of both."""
    a, a_maps = measure(first, progress, ranks)
    release_memory()
    b, b_maps = measure(replace(second, source=first.source), progress, ranks)
    report = {
        "format": FORMAT,
        "models": [a["model"], b["model"]],
        "rows": difference_rows(a, b),
        "a": a,
        "b": b,
    }
    return report, [a_maps, b_maps]
