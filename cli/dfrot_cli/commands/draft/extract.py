"""dfq draft extract: training features on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfrot_cli import show
from dfrot_cli.commands.draft.options import data_options, draft_settings
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, model_option, out_option
from dfrot_cli.plan import plan


@dfq_command("extract")
@model_option
@data_options
@out_option("Folder of the shards.")
@common
def command(model: str, out: Path, common: Common, **options: Any) -> None:
    """Write training features to safetensors shards, to train several drafts on them."""
    common.prepare()
    from dfrot.stages.draft.extract import extract, extract_size

    settings, folder = draft_settings(common, options), model_folder(model)
    size = show.size(extract_size(folder, settings))
    if common.plan:
        plan("draft extract", {"model": folder, "disk": size}, settings, out, common)
        return
    show.note(f"{out} will take {size}")
    with show.progress() as progress:
        evidence = extract(folder, out, settings, progress=progress, **common.stage())
    show.as_json({"out": str(out), **evidence}) if common.json else show.line(f"wrote {out}: {size}")
