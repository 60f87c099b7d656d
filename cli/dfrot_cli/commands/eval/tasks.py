"""dfq eval tasks: lm-eval's tasks, beside a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.ranks.single import Ranks
from dfrot.stages.evaluate.settings import TaskSettings
from dfrot_cli import show
from dfrot_cli.commands.eval.options import keep, models_option, report_option, resolved
from dfrot_cli.draft_options import draft_of, draft_options
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.launch import ranked
from dfrot_cli.options import Common, common
from dfrot_cli.plan import numbered, plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("tasks")
@models_option
@options_of(TaskSettings)
@draft_options("A draft of the last checkpoint, or ngram: draft tokens are looked up in the text itself.")
@report_option
@common
@ranked
def command(
    models: tuple[str, ...], draft: Path | str | None, out: Path | None, common: Common, ranks: Ranks, **options: Any
) -> None:
    """Measure scores on lm-eval's tasks (extra `tasks`), and the difference to the first checkpoint, paired over
    documents.

    Under torchrun or accelerate launch the processes share the requests."""
    common.prepare()
    from dfrot.stages.evaluate.tasks import evaluate_tasks

    with ranks.first_goes_ahead():
        source = draft_of(draft, options)
        folders = resolved(models, out, common)
    settings = settings_from(TaskSettings, options, seed=common.seed)
    if common.plan:
        inputs = {**numbered(folders), "draft": draft}
        plan("eval tasks", inputs, settings, out, common)
        return
    with show.progress() as progress:
        report = evaluate_tasks(folders, settings, source, progress, ranks)
    peaks = ranks.peak_bytes()
    if not ranks.first:
        return
    keep(report, models, out)
    if common.json:
        show.as_json({**report, **show.peaks_record(peaks)})
    else:
        _table(report, out)
        show.peaks(peaks)
    for result in report["results"]:
        for note in result.get("notes", ()):
            show.note(f"{result['name']}: {note}")


def _table(report: dict[str, Any], out: Path | None) -> None:
    rows = []
    for result in report["results"]:
        for task, scores in result["scores"].items():
            for metric, score in scores.items():
                numbers = [score.get(key) for key in ("value", "stderr", "difference", "difference_ci", "documents")]
                rows.append((f"{task} {metric}", result["name"], result["scheme"], *numbers))
    rows.sort(key=lambda row: row[0])
    heads = ("task", "model", "scheme", "score", "stderr", "difference", "95 % interval, paired", "documents")
    show.table(f"lm-eval {report['lm_eval']}", heads, rows)
    if out is not None:
        show.line(f"wrote {out}")
