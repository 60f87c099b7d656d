"""dfq draft eval: plain against speculative decoding of the same prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.generation.sampling import Sampling
from dfrot.stages.draft.settings import DraftEvalSettings
from dfrot_cli import show
from dfrot_cli.draft_options import draft_options, drafts_of, shape_options, shapes_of
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, file_option, model_option, require_new
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("eval")
@model_option
@draft_options(
    "Result of dfq draft train, or ngram: draft tokens are looked up in the text itself. Repeatable, to compare.",
    several=True,
)
@options_of(DraftEvalSettings, skip=("seed", "draft_dtype"))
@shape_options
@options_of(Sampling)
@click.option("--require-lossless", is_flag=True, help="Fail unless every greedy output is identical.")
@file_option("Also write the result as JSON to this file.")
@common
def command(
    model: str,
    drafts: tuple[Path | str, ...],
    chain: tuple[int, ...],
    tree: tuple[str, ...],
    require_lossless: bool,
    out: Path | None,
    common: Common,
    **options: Any,
) -> None:
    """Measure acceptance, speed and identity of outputs, per draft and tree shape, in one process and in turns."""
    common.prepare()
    from dfrot.errors import InputError
    from dfrot.files import write_json
    from dfrot.stages.draft.evaluate import evaluate, require_identical

    require_new(out, common)
    sampling = settings_from(Sampling, options)
    if require_lossless and not sampling.greedy:
        raise InputError(
            "`require_lossless` compares tokens, which only greedy decoding repeats; leave out `temperature`",
            field=("require_lossless", "temperature"),
        )
    sources = drafts_of(drafts, options)
    shapes = shapes_of(chain, tree, drafts[0] if len(drafts) == 1 else None)
    measured: dict[str, Any] = {"shapes": shapes, "sampling": sampling, "seed": common.seed}
    settings = settings_from(DraftEvalSettings, options, **measured)
    folder = model_folder(model)
    if common.plan:
        plan("draft eval", {"model": folder, "draft": ", ".join(map(str, drafts))}, settings, out, common)
        return
    with show.progress() as progress:
        report = evaluate(folder, sources, settings, progress)
    if out is not None:
        write_json(out, report)
    show.as_json(report) if common.json else _table(report)
    if require_lossless:
        require_identical(report)


def _table(report: dict[str, Any]) -> None:
    columns = {
        "tau": "tau",
        "accept_at_position": "accepted by position",
        "identical": "identical",
        "plain_tokens_per_second": "plain tokens/s",
        "tokens_per_second": "tokens/s",
        "speedup": "speedup",
        "draft_ms": "draft ms",
        "verify_ms": "verify ms",
    }
    rows = [[name, *(row.get(key) for key in columns)] for name, row in report["shapes"].items()]
    title = f"{report['prompts']} prompts, {report['max_new_tokens']} tokens each"
    show.table(title, ("draft", *columns.values()), rows)
    slow = [name for name, row in report["shapes"].items() if (row.get("speedup") or 1) < 1]
    for name, draft in report["drafts"].items():
        if draft["op_by_op"]:
            show.line(f"{name} runs operator by operator, which is slow: {draft['op_by_op']}")
    if slow:
        show.line(f"slower than plain decoding on this machine: {', '.join(slow)}")
