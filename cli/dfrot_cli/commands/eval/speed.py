"""dfq eval speed: prefill, decoding, memory; with a draft beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot.stages.evaluate.settings import SpeedSettings
from dfrot_cli import show
from dfrot_cli.commands.eval.options import keep, models_option, report_option, resolved
from dfrot_cli.draft_options import draft_of, draft_options, shape_options, shapes_of
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.options import Common, common
from dfrot_cli.plan import numbered, plan
from dfrot_cli.setting_options import options_of, settings_from


@dfq_command("speed")
@models_option
@draft_options("A draft of the last checkpoint, or ngram: draft tokens are looked up in the text itself.")
@options_of(SpeedSettings)
@shape_options
@report_option
@common
def command(
    models: tuple[str, ...],
    draft: Path | str | None,
    chain: tuple[int, ...],
    tree: tuple[str, ...],
    out: Path | None,
    common: Common,
    **options: Any,
) -> None:
    """Measure tokens per second at batch 1 and peak memory; all checkpoints take turns in one process.

    With --draft also compare plain with speculative decoding of held-out prompts."""
    common.prepare()
    from dfrot.stages.evaluate.speed import speed

    source = draft_of(draft, options)
    folders = resolved(models, out, common)
    settings = settings_from(SpeedSettings, options, shapes=shapes_of(chain, tree, draft))
    if common.plan:
        inputs = {**numbered(folders), "draft": draft}
        plan("eval speed", inputs, settings, out, common)
        return
    with show.progress() as progress:
        report = speed(folders, settings, source, progress)
    keep(report, models, out)
    show.as_json(report) if common.json else _tables(report, settings, models[-1], draft, out)


def _tables(
    report: dict[str, Any], settings: SpeedSettings, last_model: str, draft: Path | str | None, out: Path | None
) -> None:
    rows = []
    for result in report["results"]:
        memory = (result["memory"] or {}).get("model")
        rates = [result[f"{part}_tokens_per_second"] for part in ("prefill", "decode")]
        weights, share = result["weight_bytes_per_token"], result["read_share"]
        read = (None, None) if weights is None else (show.size(weights), f"{share:.0%}")
        sizes = [None if memory is None else show.size(memory), show.size(result["bytes_on_disk"])]
        rows.append((result["name"], result["scheme"], *rates, 1e3 * result["decode"]["median"], *read, *sizes))
    read_rate = show.size(report["read_bytes_per_second"])
    title = (
        f"{settings.prefill} tokens in, {settings.decode} out, medians of {settings.repeats} turns; {read_rate}/s read"
    )
    heads = ("model", "scheme", "prefill tokens/s", "decode tokens/s", "ms per token", "reads", "of bandwidth")
    show.table(title, (*heads, "memory", "on disk"), rows)
    if measured := report["draft"]:
        drafted = [
            (name, *(row.get(key) for key in ("tau", "plain_tokens_per_second", "tokens_per_second", "speedup")))
            for name, row in measured["shapes"].items()
        ]
        show.table(f"{last_model} with {draft}", ("draft", "tau", "plain tokens/s", "tokens/s", "speedup"), drafted)
    if out is not None:
        show.line(f"wrote {out}")
