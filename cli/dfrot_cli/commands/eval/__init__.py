"""dfq eval: perplexity, divergence, task scores and speed of checkpoints."""

from __future__ import annotations

import click

from dfrot_cli.lazy_group import LazyGroup

MEMBERS = {
    "ppl": "Perplexity of one or more checkpoints on the same windows.",
    "kl": "KL divergence from the first checkpoint, token by token.",
    "sensitivity": "What rounding one part of a model costs: inputs, weights, KV, layers, tokens.",
    "tasks": "Scores on lm-eval's tasks.",
    "speed": "Tokens per second and peak memory.",
}


@click.group("eval", cls=LazyGroup, package="dfrot_cli.commands.eval", members=MEMBERS)
def command() -> None:
    """Measure checkpoints."""
