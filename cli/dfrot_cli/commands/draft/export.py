"""dfq draft export: a draft in the format that serving engines read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dfrot.export.draft.settings import DraftCheckSettings
from dfrot_cli import draft_check, show
from dfrot_cli.draft_options import trained_draft_option
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, file_option, model_option
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from

FORMATS = ("speculators", "gguf")


@dfq_command("export")
@click.argument("engines_given", nargs=-1, metavar="[ENGINE]...")
@model_option
@trained_draft_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    help="The format to write: speculators (vLLM), or gguf (llama.cpp).",
)
@click.option(
    "--verifier", metavar="NAME", help="The verifier that the config names. Default: the name of the target's folder."
)
@click.option(
    "--check",
    is_flag=True,
    help="Let ENGINEs (vllm, llama.cpp; default: all that make engines set up) decode with target and draft, both "
    "exported, and compare what they accept with what dfq does. --out: a file for the report.",
)
@options_of(DraftCheckSettings)
@file_option("Folder of the exported draft.", metavar="PATH")
@common
def command(
    engines_given: tuple[str, ...],
    model: str,
    draft: Path,
    kind: str,
    verifier: str | None,
    check: bool,
    out: Path | None,
    common: Common,
    **options: Any,
) -> None:
    """Write an eagle3 or dflash draft in the format of serving engines, which do not support dream drafts."""
    common.prepare()
    from dfrot.errors import InputError
    from dfrot.export.draft.export import export_draft

    if engines_given and not check:
        raise InputError(f"{engines_given[0]}: engines are named with `check` only", field="check")
    if out is None and not check:
        raise InputError("give `out`, the folder of the exported draft", field="out")
    folder = model_folder(model)
    if common.plan:
        plan("draft export", {"model": folder, "draft": draft}, {"format": kind, "verifier": verifier}, out, common)
        return
    if check:
        draft_check.run(folder, draft, engines_given, settings_from(DraftCheckSettings, options), out, common)
        return
    assert out is not None
    evidence = export_draft(folder, draft, out, verifier or folder.name, kind, **common.stage())
    show.as_json({"out": str(out), **evidence}) if common.json else show.line(f"wrote {out}")
