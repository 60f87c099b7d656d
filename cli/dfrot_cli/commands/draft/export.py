"""dfq draft export: a draft in the format that serving engines read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dfrot.export.draft.settings import DraftCheckSettings
from dfrot_cli import show
from dfrot_cli.draft_options import trained_draft_option
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common, file_option, model_option, require_new
from dfrot_cli.plan import plan
from dfrot_cli.setting_options import options_of, settings_from

FORMATS = ("speculators", "gguf")
COLUMNS = ("engine", "serves it", "acceptance length", "dfq, same text", "ratio", "same tokens", "MB", "s")


@click.command("export")
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
        _check(folder, draft, engines_given, settings_from(DraftCheckSettings, options), out, common)
        return
    assert out is not None
    evidence = export_draft(folder, draft, out, verifier or folder.name, kind, **common.stage())
    show.as_json({"out": str(out), **evidence}) if common.json else show.line(f"wrote {out}")


def _check(
    model: Path,
    draft: Path,
    engines: tuple[str, ...],
    settings: DraftCheckSettings,
    out: Path | None,
    common: Common,
) -> None:
    """Run the engines, show and write the report. Raises GateError where one accepts otherwise than dfq."""
    from dfrot.errors import GateError
    from dfrot.export.draft.check import check_draft
    from dfrot.files import write_json

    require_new(out, common)
    with show.progress() as progress:
        report = check_draft(model, draft, engines, settings, threads=common.threads or 1, progress=progress)
    if out is not None:
        write_json(out, report)
    show.as_json(report) if common.json else _shown(report)
    if wrong := [row for row in report["rows"] if row["tau"] is not None and not row["kept"]]:
        first = wrong[0]
        raise GateError(
            f"{draft}: {first['engine']} accepts {first['tau']:.3f} tokens per pass, dfq {first['replayed']:.3f} on "
            "the same text",
            file=draft,
        )


def _shown(report: Mapping[str, Any]) -> None:
    """The rows as a table, versions, and why engines refused."""
    show.table("", COLUMNS, [_cells(row) for row in report["rows"]])
    show.line(f"dfq: {report['tau']:.3f} tokens per pass on its own text, chains of {report['chain']}")
    for row in report["rows"]:
        if row.get("versions"):
            show.line(f"{row['engine']}: " + ", ".join(f"{name} {text}" for name, text in row["versions"].items()))
        if row["detail"]:
            show.line(f"  {row['engine']}: {row['detail']}")


def _cells(row: Mapping[str, Any]) -> tuple[Any, ...]:
    same = row["same_tokens"]
    return (
        row["engine"],
        row["verdict"],
        row["tau"],
        row["replayed"],
        row["ratio"],
        None if same is None else f"{same[0]} of {same[1]}",
        round(row["peak_bytes"] / 1e6) if row.get("peak_bytes") else None,
        row.get("seconds"),
    )
