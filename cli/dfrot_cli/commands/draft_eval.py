"""dfq draft eval: plain against speculative decoding of the same prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.commands.draft_options import keep_option, sampling_of, sampling_options, shape_options, shapes_of
from dfrot_cli.options import Common, common, model_option
from dfrot_cli.plan import plan


@click.command("eval")
@model_option
@click.option("--draft", type=click.Path(path_type=Path), required=True, metavar="D", help="Result of dfq draft train.")
@click.option(
    "--dataset", "--prompts", metavar="P", default="stdlib", show_default=True, help="Text, .jsonl prompts, or shapes."
)
@click.option("--count", type=click.IntRange(1), default=20, show_default=True, help="Prompts.")
@click.option("--prompt-tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(2), default=128, show_default=True)
@keep_option
@shape_options
@sampling_options
@click.option("--require-lossless", is_flag=True, help="Fail unless every greedy output is identical.")
@click.option("--force", is_flag=True, help="Measure a draft of another target.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Also write the JSON here.")
@common
def eval_command(
    model: str,
    draft: Path,
    count: int,
    chain: tuple[int, ...],
    tree: tuple[str, ...],
    require_lossless: bool,
    out: Path | None,
    common: Common,
    **given: Any,
) -> None:
    """Acceptance, speed and identity, per draft shape, in one process and in turns."""
    common.prepare()
    from dfrot.errors import ExistsError, GateError, InputError
    from dfrot.files import write_json
    from dfrot.hub import resolve_model
    from dfrot.stages.draft.evaluate import evaluate
    from dfrot.stages.draft.settings import DraftEvalSettings

    if out is not None and out.exists() and not common.overwrite:
        raise ExistsError(f"{out}: already exists; choose another --out, or replace it with --overwrite")
    sampling = sampling_of(given)
    if require_lossless and not sampling.greedy:
        raise InputError("--require-lossless compares tokens, which only greedy decoding repeats; leave --temperature")
    settings = DraftEvalSettings(
        prompts=count, shapes=shapes_of(chain, tree), sampling=sampling, seed=common.seed, **given
    )
    folder = resolve_model(model)
    if common.plan:
        plan("draft eval", {"model": folder, "draft": draft}, settings, out, common)
        return
    with show.progress() as progress:
        report = evaluate(folder, draft, settings, progress)
    if out is not None:
        write_json(out, report)
    show.as_json(report) if common.json else _table(report)
    differing = {name: found["mismatches"] for name, found in report["shapes"].items() if found.get("mismatches")}
    if require_lossless and differing:
        name, found = next(iter(differing.items()))
        first = found[0]
        raise GateError(
            f"{name}: {len(found)} of {report['prompts']} outputs differ; prompt {first['prompt']}, token "
            f"{first['place']}: {first['class']} (margin {first['margin']:.3g}, a block moves logits by "
            f"{first['block_difference']:.3g})"
        )


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
    rows = [[name, *(found.get(key) for key in columns)] for name, found in report["shapes"].items()]
    title = f"{report['prompts']} prompts, {report['max_new_tokens']} tokens each"
    show.table(title, ("draft", *columns.values()), rows)
    slow = [name for name, found in report["shapes"].items() if (found.get("speedup") or 1) < 1]
    if report["draft_op_by_op"]:
        show.line(f"the draft runs op by op, which is slow: {report['draft_op_by_op']}")
    if slow:
        show.line(f"does not pay on this machine: {', '.join(slow)}")
