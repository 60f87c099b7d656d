"""What the dfq eval commands share: their checkpoints, and the file that keeps the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, file_option, require_new

models_option = click.option(
    "--model", "models", multiple=True, required=True, metavar="M", help="A checkpoint; repeatable, the baseline first."
)
report_option = file_option("Also write the result as JSON to this file (see dfq report).")


def resolved(models: Sequence[str], out: Path | None, common: Common) -> list[Path]:
    """The folders of `models`. Refuses an output that exists."""
    require_new(out, common)
    return [model_folder(model) for model in models]


def keep(report: dict[str, Any], models: Sequence[str], out: Path | None) -> None:
    """Name the results as the user named the checkpoints, and write them."""
    from dfrot.files import write_json

    for result, name in zip(report["results"], models):
        result["name"] = name
    if out is not None:
        write_json(out, report)
