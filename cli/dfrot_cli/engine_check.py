"""`dfq export DIR --check ENGINE ...`: running engines, and how their verdicts are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dfrot.export.settings import ExportCheckSettings
from dfrot_cli import show
from dfrot_cli.options import Common, require_new

COLUMNS = ("scheme", "as", "engine", "serves it", "perplexity", "declared", "a16", "rounding", "greedy", "MB", "s")


def run(
    folder: Path,
    engines: Sequence[str],
    settings: ExportCheckSettings,
    to: str | None,
    out: Path | None,
    options: Mapping[str, Any],
    common: Common,
) -> None:
    """Run the engines, show and write the report. Raises GateError where one serves something else in silence."""
    from dfrot.errors import GateError
    from dfrot.export.serving.check import check_engines
    from dfrot.files import write_json

    require_new(out, common)
    formats = () if to is None else (to,)
    r4 = bool(options.get("online_r4"))
    with show.progress() as progress:
        report = check_engines(
            folder, engines, settings, formats, online_r4=r4, threads=common.threads or 1, progress=progress
        )
    if out is not None:
        write_json(out, report)
    show.as_json(report) if common.json else _shown(report["rows"])
    if wrong := [row for row in report["rows"] if row.get("perplexity") and not row["kept"]]:
        first = wrong[0]
        raise GateError(f"{folder}: {first['engine']} serves {first['scheme']} {first['verdict']}", file=folder)


def _shown(rows: Sequence[Mapping[str, Any]]) -> None:
    """The verdicts as a table, what serves the linears, and the last lines of engines that refused."""
    ran = [row for row in rows if "engine" in row]
    if ran:
        show.table("", COLUMNS, [_cells(row) for row in ran])
    for row in ran:
        if row.get("linears"):
            kernels = ", ".join(f"{count} x {name}" for name, count in row["linears"].items())
            versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
            show.line(f"{row['engine']} ({versions}): {kernels}")
        if row.get("text"):
            show.line(f"  greedy: {row['text']!r}")
        if row["detail"]:
            show.line(f"  {row['engine']}, {row['scheme']}: {row['detail']}")
    for row in rows:
        if "engine" not in row:
            show.line(f"{row['target']}: no export ({row['detail']})")


def _cells(row: Mapping[str, Any]) -> tuple[Any, ...]:
    share, same = row["share"], row.get("same_tokens")
    return (
        row["scheme"],
        row["storage"],
        row["engine"],
        row["verdict"],
        row["perplexity"],
        row["declared"],
        row["sixteen"],
        None if share is None else f"{share:.0%}",
        None if same is None else f"{same[0]} of {same[1]}",
        round(row["peak_bytes"] / 1e6) if row.get("peak_bytes") else None,
        row.get("seconds"),
    )
