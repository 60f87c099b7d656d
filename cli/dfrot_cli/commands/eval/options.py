"""What the dfq eval commands share: their checkpoints, and the file that keeps the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from dfrot_cli.options import Common

Function = TypeVar("Function", bound=Callable[..., Any])

models_option = click.option(
    "--model", "models", multiple=True, required=True, metavar="M", help="Repeatable; the first is the baseline."
)
file_option = click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Also write the JSON here (see dfq report)."
)


def resolved(models: Sequence[str], out: Path | None, common: Common) -> list[Path]:
    """The folders; refuses an output that is there."""
    from dfrot.errors import ExistsError
    from dfrot.hub import resolve_model

    if out is not None and out.exists() and not common.overwrite:
        raise ExistsError(f"{out}: already exists; choose another --out, or replace it with --overwrite")
    return [resolve_model(model) for model in models]


def keep(report: dict[str, Any], models: Sequence[str], out: Path | None) -> None:
    """Name the results as they were asked for, and write them."""
    from dfrot.files import write_json

    for result, name in zip(report["results"], models):
        result["name"] = name
    if out is not None:
        write_json(out, report)
