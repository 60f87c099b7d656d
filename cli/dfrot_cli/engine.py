"""The engine of `dfq generate` and `dfq serve`; the code of drafts is only loaded with a draft."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfrot.generation.engine import Engine
    from dfrot.generation.settings import NgramSettings


def open_engine(
    model: Path, draft: Path | NgramSettings | None, shape: tuple[int, int, int] | None, force: bool
) -> Engine:
    """A loaded checkpoint, with its draft if one is given. shape: of draft trees, None to choose it from measured
    costs. force: allow a draft of another target."""
    if draft is None:
        from dfrot.generation.engine import Engine

        return Engine(model)
    from dfrot.draft.load import open_engine as open_with_draft

    return open_with_draft(model, draft, shape, force)
