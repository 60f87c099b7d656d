"""dfq draft export: a draft in the format that serving engines read."""

from __future__ import annotations

from pathlib import Path

import click

from dfrot_cli import show
from dfrot_cli.options import Common, common, model_option, out_option
from dfrot_cli.plan import plan


@click.command("export")
@model_option
@click.option("--draft", type=click.Path(path_type=Path), required=True, metavar="D", help="Result of dfq draft train.")
@click.option("--format", "kind", type=click.Choice(["speculators"]), default="speculators", show_default=True)
@click.option(
    "--verifier", metavar="NAME", help="What the config names as verifier; default: the target's folder name."
)
@out_option("Folder of the exported draft.")
@common
def export(model: str, draft: Path, kind: str, verifier: str | None, out: Path, common: Common) -> None:
    """Write an eagle3 draft as serving engines load it (a dream draft has no place there, and is refused)."""
    common.prepare()
    from dfrot.hub import resolve_model
    from dfrot.stages.draft.export import export_draft

    folder = resolve_model(model)
    if common.plan:
        plan("draft export", {"model": folder, "draft": draft}, {"format": kind, "verifier": verifier}, out, common)
        return
    evidence = export_draft(folder, draft, out, verifier or folder.name, **common.stage())
    show.as_json({"out": str(out), **evidence}) if common.json else show.line(f"wrote {out}")
