"""dfq draft generate: the old name of dfq generate --draft."""

from __future__ import annotations

from typing import Any

from dfrot_cli import show
from dfrot_cli.generation import generate, generate_options
from dfrot_cli.grouped_help import dfq_command
from dfrot_cli.options import Common, common

_NOTE = "note: dfq draft generate is deprecated and will be removed; use dfq generate --draft, which does the same"


@dfq_command("generate")
@generate_options
@common
def command(common: Common, **options: Any) -> None:
    """Old name of dfq generate --draft, which does the same."""
    generate("draft generate", common, **options)
    show.note(_NOTE)
