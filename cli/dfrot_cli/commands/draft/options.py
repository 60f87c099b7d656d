"""Options that several commands with drafts take, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from dfrot.draft.training.settings import LossWeights, TrainSettings
from dfrot.stages.draft.settings import DataSettings, DraftSettings
from dfrot_cli.options import Common, path_option
from dfrot_cli.setting_options import options_of, settings_from

Function = TypeVar("Function", bound=Callable[..., Any])
Shape = tuple[int, int, int]

LOSS_WEIGHTS = {"feature": "weight_feature", "mid": "weight_mid", "decay": "loss_decay"}
draft_option = path_option(
    "--draft", metavar="D", text="Result of dfq draft train, for speculative decoding. Without it decoding is plain."
)
required_draft_option = path_option("--draft", metavar="D", text="Result of dfq draft train.", required=True)


def shape_options(function: Function) -> Function:
    """--chain and --tree; `shapes_of` reads them."""
    tree = click.option(
        "--tree",
        multiple=True,
        metavar="D,K,N",
        help="Propose a tree of draft tokens: depth, top-k, total nodes with the root; repeatable.",
    )
    chain = click.option(
        "--chain", type=click.IntRange(0), multiple=True, help="Propose a chain of this many draft tokens; repeatable."
    )
    return chain(tree(function))


def shapes_of(chain: tuple[int, ...], tree: tuple[str, ...]) -> tuple[Shape, ...]:
    """All tree shapes asked for, (depth, top-k, total nodes) each; a chain of 3 where none is."""
    from dfrot.generation.speculation.tree import TreeShape

    shapes = [TreeShape.parse(length, None) for length in chain] + [TreeShape.parse(None, text) for text in tree]
    return tuple((shape.depth, shape.topk, shape.total) for shape in shapes or [TreeShape.parse(None, None)])


def single_shape(chain: tuple[int, ...], tree: tuple[str, ...]) -> Shape | None:
    """The tree shape asked for, or None. Raises InputError for more than one."""
    from dfrot.errors import InputError

    if len(chain) + len(tree) > 1:
        raise InputError("`chain` and `tree`: give one shape", field=("chain", "tree"))
    return shapes_of(chain, tree)[0] if chain or tree else None


def data_options(function: Function) -> Function:
    """What a draft is trained on, and what decides which features it needs."""
    return options_of(DataSettings)(options_of(DraftSettings, only=("arch", "select"))(function))


def draft_settings(common: Common, options: dict[str, Any]) -> DraftSettings:
    """The settings of a draft from the options of train or extract, which are taken out of `options`."""
    data = settings_from(DataSettings, options, seed=common.seed)
    weights = settings_from(LossWeights, options, LOSS_WEIGHTS)
    train = settings_from(TrainSettings, options, seed=common.seed, weights=weights)
    return settings_from(DraftSettings, options, data=data, train=train)
