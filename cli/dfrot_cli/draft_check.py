"""`dfq draft export --check`: running engines with a draft, and how what they accept is shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfrot.export.draft.settings import DraftCheckSettings
from dfrot_cli import show
from dfrot_cli.options import Common, require_new

COLUMNS = ("engine", "serves it", "acceptance length", "dfq, same text", "ratio", "same tokens", "MB", "s")


def run(
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
