"""--draft, --chain and --tree of the commands that decode: a trained draft or look-up drafting, and its shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from dfrot.generation.settings import NgramSettings
from dfrot_cli.setting_options import options_of, settings_from

Function = TypeVar("Function", bound=Callable[..., Any])
Shape = tuple[int, int, int]

NGRAM = "ngram"  # in place of a draft's folder: look-up drafting
SPECULATIVE = (
    "For speculative decoding: a result of dfq draft train, or ngram, which looks draft tokens up in the text itself. "
    "Without it decoding is plain."
)
NGRAM_NAMES = {"longest": "ngram_length", "most": "ngram_tokens"}


class _DraftType(click.ParamType):  # type: ignore[type-arg]
    """`ngram`, or a draft's folder."""

    name = "draft"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == NGRAM or isinstance(value, Path) else Path(value)


class _TrainedDraftType(click.ParamType):  # type: ignore[type-arg]
    """A draft's folder."""

    name = "draft"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from dfrot.errors import InputError

        if value == NGRAM:
            raise InputError(
                "`draft` ngram: has no weights; give a result of dfq draft train (a folder of that name is ./ngram)",
                field="draft",
            )
        return Path(value)


trained_draft_option = click.option(
    "--draft", type=_TrainedDraftType(), required=True, metavar="D", help="Result of dfq draft train."
)


def draft_options(text: str = SPECULATIVE, several: bool = False) -> Callable[[Function], Function]:
    """--draft, a folder or `ngram`, and what look-up drafting takes; `draft_of` reads them. text: help of --draft.
    several: one or more drafts, as `drafts`, which `drafts_of` reads."""
    if several:
        option = click.option(
            "--draft", "drafts", type=_DraftType(), required=True, multiple=True, metavar="D", help=text
        )
    else:
        option = click.option("--draft", type=_DraftType(), metavar="D", help=text)
    lookup = options_of(NgramSettings, rename=NGRAM_NAMES)
    return lambda function: option(lookup(function))


def draft_of(draft: Path | str | None, options: dict[str, Any]) -> Path | NgramSettings | None:
    """The draft that the options of `draft_options` ask for; its settings are taken out of `options`.

    Raises InputError for settings of look-up drafting without it."""
    lookup = _lookup(draft, options)
    return lookup if lookup is not None or draft is None else Path(draft)


def drafts_of(drafts: Sequence[Path | str], options: dict[str, Any]) -> list[Path | NgramSettings]:
    """The drafts that the options of `draft_options` with `several` ask for; settings of look-up drafting are taken out
    of `options`. Raises InputError for these without it."""
    lookup = _lookup(NGRAM if NGRAM in drafts else None, options)
    return [lookup if draft == NGRAM and lookup is not None else Path(draft) for draft in drafts]


def _lookup(draft: Path | str | None, options: dict[str, Any]) -> NgramSettings | None:
    from dfrot.errors import InputError

    settings = settings_from(NgramSettings, options, NGRAM_NAMES)
    if draft == NGRAM:
        return settings
    if settings != NgramSettings():
        names = tuple(NGRAM_NAMES.values())
        raise InputError("`ngram_length` and `ngram_tokens` belong to `draft` ngram; leave them out", field=names)
    return None


def shape_options(function: Function) -> Function:
    """--chain and --tree; `shapes_of` reads them."""
    tree = click.option(
        "--tree",
        multiple=True,
        metavar="D,K,N",
        help="Propose a tree of draft tokens: depth, top-k, total nodes with the root; repeatable.",
    )
    chain = click.option(
        "--chain",
        type=click.IntRange(0),
        metavar="N",
        multiple=True,
        help="Propose a chain of N draft tokens; repeatable.",
    )
    return chain(tree(function))


def shapes_of(chain: tuple[int, ...], tree: tuple[str, ...], draft: Path | str | None = None) -> tuple[Shape, ...]:
    """All tree shapes asked for, (depth, top-k, total nodes) each. Where none is: a chain of 3; for look-up drafting
    none, because it chooses the length of every chain."""
    from dfrot.generation.speculation.tree import TreeShape

    if draft == NGRAM and not chain and not tree:
        return ()
    shapes = [TreeShape.parse(length, None) for length in chain] + [TreeShape.parse(None, text) for text in tree]
    return tuple((shape.depth, shape.topk, shape.total) for shape in shapes or [TreeShape.parse(None, None)])


def single_shape(chain: tuple[int, ...], tree: tuple[str, ...]) -> Shape | None:
    """The tree shape asked for, or None. Raises InputError for more than one."""
    from dfrot.errors import InputError

    if len(chain) + len(tree) > 1:
        raise InputError("`chain` and `tree`: give one shape", field=("chain", "tree"))
    return shapes_of(chain, tree)[0] if chain or tree else None
