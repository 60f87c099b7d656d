"""dfq draft: train a small model that proposes tokens for a quantized target, and measure it."""

from __future__ import annotations

import click

from dfrot_cli.lazy_group import LazyGroup

MEMBERS = {
    "train": "Train a draft on the features of a target.",
    "extract": "Write training features to disk, to train several drafts on them.",
    "eval": "Compare plain with speculative decoding of the same prompts.",
    "generate": "Old name of dfq generate --draft.",
    "export": "Write a draft in the format of serving engines.",
}


@click.group("draft", cls=LazyGroup, package="dfrot_cli.commands.draft", members=MEMBERS)
def command() -> None:
    """Train a draft for a quantized target, and measure it."""
