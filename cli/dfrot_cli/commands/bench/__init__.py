"""dfq bench: dfq's own speed, beside what it replaces."""

from __future__ import annotations

import click

from dfrot_cli.lazy_group import LazyGroup

MEMBERS = {
    "rotate": "Time the refinement of rotations, or draw its effect.",
    "kernels": "Time every operator beside torch's.",
    "models": "Race whole models against other engines.",
    "generate": "Time whole models beside llama.cpp.",
    "serve": "Measure a running server under load.",
    "evaluate": "Time the loss of a checkpoint beside transformers'.",
    "draft": "Measure what drafting costs, and when it pays.",
}


@click.group("bench", cls=LazyGroup, package="dfrot_cli.commands.bench", members=MEMBERS)
def command() -> None:
    """Measure dfq itself, beside what it replaces."""
