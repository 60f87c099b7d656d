"""Options that several dfq draft commands take, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from dfrot_cli.options import Common

Function = TypeVar("Function", bound=Callable[..., Any])

_SAMPLING = (
    click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy."),
    click.option("--top-p", type=float, default=1.0, show_default=True),
    click.option("--top-k", type=int, default=0, show_default=True, help="0 keeps every token."),
    click.option("--repetition-penalty", type=float, default=1.0, show_default=True),
)
_SHAPES = (
    click.option("--chain", type=click.IntRange(0), multiple=True, help="Guesses per round; repeatable."),
    click.option("--tree", multiple=True, metavar="D,K,N", help="Depth, top-k, nodes with the root; repeatable."),
)


def sampling_options(function: Function) -> Function:
    for option in reversed(_SAMPLING):
        function = option(function)
    return function


def shape_options(function: Function) -> Function:
    for option in reversed(_SHAPES):
        function = option(function)
    return function


def sampling_of(given: dict[str, Any]) -> Any:
    """A Sampling from the options, which are taken out of `given`."""
    from dfrot.generation.sampling import Sampling

    names = ("temperature", "top_p", "top_k", "repetition_penalty")
    return Sampling(**{name: given.pop(name) for name in names})


def shapes_of(chain: tuple[int, ...], tree: tuple[str, ...]) -> tuple[tuple[int, int, int], ...]:
    """All shapes asked for; a chain of 3 without any."""
    from dfrot.generation.tree import TreeShape

    shapes = [TreeShape.parse(length, None) for length in chain] + [TreeShape.parse(None, text) for text in tree]
    return tuple((one.depth, one.topk, one.total) for one in shapes or [TreeShape.parse(None, None)])


keep_option = click.option(
    "--keep-visual", "keep", type=click.FloatRange(0, 1), default=0.75, show_default=True,
    help="Share of image tokens that the draft sees.",
)  # fmt: skip
_DATA = (
    click.option(
        "--dataset", "--data", metavar="D", default="stdlib", show_default=True, help="Text, .jsonl chats, or shapes."
    ),
    click.option("--samples", type=click.IntRange(1), default=1024, show_default=True),
    click.option("--held-out", type=click.IntRange(1), default=16, show_default=True, help="Samples to judge by."),
    click.option("--seqlen", type=click.IntRange(8), default=256, show_default=True),
    click.option("--regenerate", is_flag=True, help="The target writes the answers itself."),
    click.option("--prompt", type=click.IntRange(1), default=32, show_default=True, help="Tokens before them."),
    keep_option,
    click.option("--arch", type=click.Choice(["dream", "eagle3"]), default="dream", show_default=True),
    click.option("--feature-select", "select", default="sample", show_default=True, help="sample|token|static:F|none."),
)


def data_options(function: Function) -> Function:
    for option in reversed(_DATA):
        function = option(function)
    return function


def draft_settings(common: Common, given: dict[str, Any], train: dict[str, Any]) -> Any:
    """DraftSettings from the options of train or extract."""
    from dfrot.draft.training.settings import TrainOptions, Weights
    from dfrot.stages.draft.settings import DataSettings, DraftSettings

    names = ("dataset", "samples", "held_out", "seqlen", "regenerate", "prompt", "keep")
    data = DataSettings(**{name: given.pop(name) for name in names}, seed=common.seed)
    parts = ("feature", "mid", "decay")
    weights = Weights(**{name: train.pop(f"weight_{name}") for name in parts if f"weight_{name}" in train})
    return DraftSettings(data=data, train=TrainOptions(**train, weights=weights, seed=common.seed), **given)
