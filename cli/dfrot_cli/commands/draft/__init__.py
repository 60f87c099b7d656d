"""dfq draft: train a small model that guesses what a quantized target will say, and decode with it, losslessly."""

from __future__ import annotations

import click

from dfrot_cli.commands.draft.eval import eval_command
from dfrot_cli.commands.draft.export import export
from dfrot_cli.commands.draft.extract import extract
from dfrot_cli.commands.draft.generate import generate
from dfrot_cli.commands.draft.train import train


@click.group("draft")
def command() -> None:
    """Train a draft for a quantized target; generate and measure with it."""


for part in (train, extract, eval_command, generate, export):
    command.add_command(part)
