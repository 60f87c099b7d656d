"""dfq eval tasks: lm-eval's tasks, beside a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.commands.eval_options import file_option, keep, models_option, resolved
from dfrot_cli.options import Common, common
from dfrot_cli.plan import numbered, plan


@click.command("tasks")
@models_option
@click.option("--task", "tasks", multiple=True, required=True, metavar="NAME", help="Repeatable: piqa, hellaswag, ...")
@click.option("--task-path", metavar="DIR", help="Folder of task files (YAML and their data): works offline.")
@click.option("--task-code", is_flag=True, help="Let task files of that folder run their Python functions.")
@click.option("--limit", type=click.IntRange(1), help="Documents per task.")
@click.option("--fewshot", type=click.IntRange(0), help="Examples before each document. Default: the task's.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Rows per forward pass.")
@click.option("--chat", is_flag=True, help="Put prompts into the model's chat template.")
@click.option("--draft", type=click.Path(path_type=Path), metavar="D", help="A draft of the last checkpoint.")
@file_option
@common
def tasks(
    models: tuple[str, ...],
    tasks: tuple[str, ...],
    draft: Path | None,
    out: Path | None,
    common: Common,
    **options: Any,
) -> None:
    """Scores on lm-eval's tasks (extra `tasks`), with each difference to the first checkpoint paired over documents."""
    common.prepare()
    from dfrot.stages.evaluate.settings import TaskSettings
    from dfrot.stages.evaluate.tasks import evaluate_tasks

    folders = resolved(models, out, common)
    settings = TaskSettings(tasks=tasks, seed=common.seed, **options)
    if common.plan:
        inputs = {**numbered(folders), "draft": draft}
        plan("eval tasks", inputs, settings, out, common)
        return
    with show.progress() as progress:
        report = evaluate_tasks(folders, settings, draft, progress)
    keep(report, models, out)
    if common.json:
        show.as_json(report)
        return
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
