"""How `dfq export` shows which format holds which scheme, what it wrote, and what it checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfrot.export.settings import ExportForSettings
from dfrot.quant.scheme import QuantScheme
from dfrot_cli import show
from dfrot_cli.options import Common


def matrix(json: bool) -> None:
    """Every scheme and format: whether it can be exported, and the nearest scheme that can."""
    from dfrot.export import fit

    rows = fit.matrix()
    if json:
        show.as_json({name: {key: fitted.to_dict() for key, fitted in row.items()} for name, row in rows.items()})
        return
    targets = list(next(iter(rows.values())))
    show.table("", ("scheme", *targets), [(name, *(row[key].summary for key in targets)) for name, row in rows.items()])
    show.line("no (why): the nearest scheme that can be exported")


def run(
    model: Path,
    to: str | None,
    scheme: QuantScheme | None,
    out: Path,
    wanted: ExportForSettings,
    options: Mapping[str, Any],
    common: Common,
) -> None:
    """Export `model`, in the format `to` or in the one that the wanted engine serves best, and show the record."""
    from dfrot.export.run import export
    from dfrot.export.serving.planning import plan_for

    serving = None
    if wanted.engine is not None:
        r4 = bool(options["online_r4"])
        serving = plan_for(model, wanted.engine, to, scheme, online_r4=r4, force=wanted.force)
        to, scheme = serving.to, serving.scheme
    with show.progress() as progress:
        evidence = export(model, str(to), out, scheme, serving=serving, progress=progress, **options, **common.stage())
    show.as_json({"out": str(out), **evidence}) if common.json else written(evidence, out)


def written(evidence: dict[str, Any], out: Path) -> None:
    """The files of an export and the engines that load them. evidence: its record."""
    for text in evidence["notes"]:
        show.note(f"note: {text}")
    if (scales := evidence["scales"])["rounded"]:
        worst = scales["worst_relative_error"]
        show.note(f"note: {scales['rounded']} of {scales['count']} scales rounded to float16, by at most {worst:g}")
    names = ", ".join(str(out / name) for name in evidence["files"])
    show.line(f"wrote {names}: {evidence['scheme']} as {evidence['storage']}, {show.size(evidence['bytes'])}")
    if (serving := evidence.get("serving")) is None:
        show.line(f"for {', '.join(evidence['engines'])}")
        return
    show.line(f"for {serving['engine']}: {serving['why']}")
    for text in serving["warnings"]:
        show.note(f"warning: {text}")
    show.line(f"serve it from {out}: {serving['command']}")


def checked(report: dict[str, Any], out: Path) -> None:
    """What every engine computed with the exported files, beside dfq's own results."""
    columns = (
        "scheme",
        "target",
        "as",
        "loaded by",
        "perplexity",
        "by definition",
        "ratio",
        "logits, rel. RMS",
        "match",
        "dfq",
    )
    keys = ("scheme", "target", "storage", "engine", "perplexity", "ours", "ratio", "logits", "match", "runtime")
    show.table("", columns, [tuple(row[key] for key in keys) for row in report["rows"] if row["refused"] is None])
    refused = [
        (row["scheme"], row["target"], row["refused"], row["instead"]) for row in report["rows"] if row["refused"]
    ]
    if refused:
        show.table("", ("scheme", "target", "refused", "instead"), refused)
    show.line(f"wrote {out / 'check.json'}")
