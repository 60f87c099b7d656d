"""Loading a draft together with its target."""

from __future__ import annotations

from pathlib import Path

from dfrot.draft.models.base import Draft
from dfrot.draft.models.native_pass import unfit
from dfrot.draft.store import check_target, load_draft
from dfrot.dtypes import DTYPES
from dfrot.generation.engine import Engine
from dfrot.generation.load_target import load_target
from dfrot.generation.settings import NgramSettings
from dfrot.generation.target import Target

LARGE = 32_000_000  # parameters from which on reading float32 weights costs more than converting bfloat16


def load_draft_in(draft: Path, dtype: str) -> Draft:
    """The draft of a folder in `float32`, `bfloat16`, or `auto`: bfloat16 for a large draft and for one whose passes
    are native calls (which compute in float32 from bfloat16 weights), else float32."""
    loaded = load_draft(draft)
    if dtype == "auto":
        dtype = "bfloat16" if loaded.count() >= LARGE or unfit(loaded) is None else "float32"
    return loaded.to(DTYPES[dtype])


def load_target_and_draft(
    model: Path, draft: Path | NgramSettings, dtype: str = "auto", force: bool = False
) -> tuple[Target, Draft | NgramSettings]:
    """A target and its draft; look-up drafting has nothing to load.

    Raises MismatchError for a draft of another target; `force` allows it unless sizes differ."""
    if isinstance(draft, NgramSettings):
        return load_target(model), draft
    loaded = load_draft_in(draft, dtype)
    target = load_target(model, loaded.aux_layers)
    check_target(loaded.config, model, target.vocab_size, int(target.config.hidden_size), force)
    return target, loaded


def open_engine(
    model: Path,
    draft: Path | NgramSettings | None,
    shape: tuple[int, int, int] | None = None,
    force: bool = False,
    draft_dtype: str = "auto",
) -> Engine:
    """An `Engine` for a checkpoint and, if given, its draft: a folder, or settings of look-up drafting.

    shape: (depth, top-k, total) of draft trees; None measures which suits this machine. force: allow a draft of another
    target. draft_dtype: see `load_draft_in`. Raises DfqError as `Engine` and `load_target_and_draft` do."""
    if draft is None:
        return Engine(model)
    target, loaded = load_target_and_draft(model, draft, draft_dtype, force)
    return Engine(model, loaded, shape, target)
