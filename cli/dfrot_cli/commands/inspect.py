"""dfq inspect: what a checkpoint is and what can load it."""

from __future__ import annotations

from typing import Any

import click

from dfrot_cli import show
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.models import model_folder
from dfrot_cli.options import Common, common


@dfq_command("inspect")
@click.argument("path", metavar="PATH")
@common
def command(path: str, common: Common) -> None:
    """Show what a checkpoint is: scheme, rotation, size, what can load it, what it can be exported to.

    PATH is a folder (dfq's, a 16-bit one, GPTQ, AWQ, compressed-tensors), a .gguf file, or what --model takes. Only
    headers are read.
    """
    common.prepare()
    from pathlib import Path

    from dfrot.export.inspect import inspect

    folder = Path(path)
    facts = inspect(folder if folder.exists() else model_folder(path))
    if common.json:
        show.as_json(facts)
        return
    show.facts(str(facts.pop("path")), dict(_rows(facts)))


def _rows(facts: dict[str, Any]) -> Any:
    for name, value in facts.items():
        label = name.replace("_", " ")
        if name == "bytes":
            yield "size", show.size(value)
        elif name == "parameters":
            yield label, f"{value:,}"
        elif isinstance(value, dict):
            for key, item in value.items():
                yield f"{label}: {key}", item
        elif isinstance(value, list):
            if value:
                yield label, "; ".join(map(str, value)) if name == "notes" else ", ".join(map(str, value))
        elif value is not None:
            yield label, value
