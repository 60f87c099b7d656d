"""A stage's folder that several ranks work on: the first owns it, the others see what is done."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfrot.errors import MismatchError, ResourceError
from dfrot.files import digest_json
from dfrot.ranks.single import Ranks
from dfrot.stage_folder import Stage, open_stage


class SharedStage(Stage):
    """What one rank knows of a stage. `mark` and `publish` are called by all ranks, and wait for them."""

    def __init__(self, ranks: Ranks, stage: Stage, done: dict[str, Any]) -> None:
        """stage: of the first rank, or one that is not open. done: the values of finished units by name."""
        super().__init__(stage.out, stage.kind, stage.request)
        self.ranks, self.owned = ranks, stage
        self.finished = stage.finished
        self._done = done

    def mark(self, unit: str, value: Any = None) -> None:
        """See Stage. Every rank's share of the unit must be durable. value: that of the first rank counts, and is what
        all ranks recall."""
        self.ranks.barrier()
        if self.ranks.first:
            self.owned.mark(unit, value)
        self._done[unit] = self.ranks.broadcast(value)

    def publish(self, result: dict[str, Any]) -> None:
        """See Stage; the first rank's result counts."""
        self.ranks.barrier()
        if self.ranks.first:
            self.owned.publish(result)
        self.ranks.barrier()
        self.finished = True


@contextlib.contextmanager
def open_shared_stage(
    ranks: Ranks, out: Path, kind: str, request: dict[str, Any], resume: bool | None = None, overwrite: bool = False
) -> Iterator[Stage]:
    """`open_stage` for all ranks together.

    Raises, besides its errors, MismatchError where a rank was asked for something else, and ResourceError where one
    does not see the folder."""
    digest = digest_json(request)
    if ranks.size == 1:
        with open_stage(out, kind, request, resume, overwrite) as stage:
            yield stage
        return
    digests = ranks.gather_everywhere(digest)
    if len(set(digests)) > 1:
        raise MismatchError(
            f"rank {ranks.rank}: the ranks were asked for different work; give all of them the same command, models, "
            "texts and versions"
        )
    with contextlib.ExitStack() as stack:
        if ranks.first:
            owned = stack.enter_context(open_stage(out, kind, request, resume, overwrite))
        else:
            owned = Stage(out, kind, request)
        state = {"finished": owned.finished, "done": dict(owned.finished_units())}
        state = ranks.broadcast(state)
        owned.finished = state["finished"]
        stage = SharedStage(ranks, owned, state["done"])
        if not stage.finished and not stage.folder.is_dir():
            raise ResourceError(
                f"rank {ranks.rank} on {socket.gethostname()} does not see {stage.folder}; `out` must lie in a folder "
                "that all machines share",
                field="out",
                file=stage.folder,
            )
        yield stage
