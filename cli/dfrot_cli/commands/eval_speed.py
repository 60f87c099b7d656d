"""dfq eval speed: prefill, decoding, memory; with a draft beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.commands.draft_options import shape_options, shapes_of
from dfrot_cli.commands.eval_options import file_option, keep, models_option, resolved
from dfrot_cli.options import Common, common
from dfrot_cli.plan import numbered, plan


@click.command("speed")
@models_option
@click.option("--draft", type=click.Path(path_type=Path), metavar="D", help="A draft of the last checkpoint.")
@click.option("--prefill", type=click.IntRange(1), default=512, show_default=True, help="Tokens of the prompt.")
@click.option("--decode", type=click.IntRange(1), default=64, show_default=True, help="New tokens.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Turns; medians are shown.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Peak memory, in processes of their own.")
@click.option("--dataset", default="stdlib", show_default=True, metavar="D", help="Prompts of the draft.")
@click.option("--prompts", type=click.IntRange(1), default=6, show_default=True, help="How many.")
@shape_options
@file_option
@common
def speed(
    models: tuple[str, ...],
    draft: Path | None,
    chain: tuple[int, ...],
    tree: tuple[str, ...],
    out: Path | None,
    common: Common,
    **options: Any,
) -> None:
    """Tokens per second at batch 1 and peak memory; all checkpoints take turns in one process.

    With --draft also plain against speculative decoding of held-out prompts."""
    common.prepare()
    from dfrot.stages.evaluate.settings import SpeedSettings
    from dfrot.stages.evaluate.speed import speed

    folders = resolved(models, out, common)
    settings = SpeedSettings(shapes=shapes_of(chain, tree), **options)
    if common.plan:
        inputs = {**numbered(folders), "draft": draft}
        plan("eval speed", inputs, settings, out, common)
        return
    with show.progress() as progress:
        report = speed(folders, settings, draft, progress)
    keep(report, models, out)
    if common.json:
        show.as_json(report)
        return
    rows = []
    for result in report["results"]:
        memory = (result["memory"] or {}).get("model")
        rates = [result[f"{part}_tokens_per_second"] for part in ("prefill", "decode")]
        sizes = [None if memory is None else show.size(memory), show.size(result["bytes_on_disk"])]
        rows.append((result["name"], result["scheme"], *rates, 1e3 * result["decode"]["median"], *sizes))
    title = f"{settings.prefill} tokens in, {settings.decode} out, medians of {settings.repeats} turns"
    heads = ("model", "scheme", "prefill tokens/s", "decode tokens/s", "ms per token", "memory", "on disk")
    show.table(title, heads, rows)
    if found := report["draft"]:
        drafted = [
            (name, *(one.get(key) for key in ("tau", "plain_tokens_per_second", "tokens_per_second", "speedup")))
            for name, one in found["shapes"].items()
        ]
        show.table(f"{models[-1]} with {draft}", ("draft", "tau", "plain tokens/s", "tokens/s", "speedup"), drafted)
    if out is not None:
        show.line(f"wrote {out}")
