"""The process group that torchrun or accelerate launch describes in the environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def launched(shard: bool = False) -> Iterator[Any]:
    """The process group that a launcher describes in the environment; this process alone without a launcher.

    shard: every process holds a part of the draft. Raises InputError for an environment that is not complete."""
    from dfrot.draft.training.distributed import DistributedGroup, LocalGroup
    from dfrot.errors import InputError

    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        if shard:
            raise InputError(
                "`shard` splits a draft between processes, and this is a single one; start with torchrun", field="shard"
            )
        yield LocalGroup()
        return
    try:
        address = (int(os.environ["RANK"]), int(size), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    except (KeyError, ValueError):
        raise InputError(
            f"WORLD_SIZE is {size}, but RANK, MASTER_ADDR and MASTER_PORT do not describe the others; "
            "start with torchrun or accelerate launch"
        ) from None
    group = DistributedGroup(*address, shard)
    try:
        yield group
    finally:
        group.leave()
