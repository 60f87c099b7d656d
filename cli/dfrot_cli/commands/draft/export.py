"""dfq draft export: a draft in the format that serving engines read."""

from __future__ import annotations

from pathlib import Path

import click

from dfrot_cli import show
from dfrot_cli.draft_options import trained_draft_option
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, model_option, out_option
from dfrot_cli.plan import plan

FORMATS = ("speculators",)


@click.command("export")
@model_option
@trained_draft_option
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True, help="The format to write."
)
@click.option(
    "--verifier", metavar="NAME", help="The verifier that the config names. Default: the name of the target's folder."
)
@out_option("Folder of the exported draft.")
@common
def command(model: str, draft: Path, kind: str, verifier: str | None, out: Path, common: Common) -> None:
    """Write an eagle3 or dflash draft in the format of serving engines, which do not support dream drafts."""
    common.prepare()
    from dfrot.stages.draft.export import export_draft

    folder = model_folder(model)
    if common.plan:
        plan("draft export", {"model": folder, "draft": draft}, {"format": kind, "verifier": verifier}, out, common)
        return
    evidence = export_draft(folder, draft, out, verifier or folder.name, **common.stage())
    show.as_json({"out": str(out), **evidence}) if common.json else show.line(f"wrote {out}")
