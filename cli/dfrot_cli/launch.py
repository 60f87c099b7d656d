"""What torchrun and accelerate launch say in the environment about the processes they start."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def launched(shard: bool = False) -> Iterator[Any]:
    """The processes that a launcher started, as it says in the environment; this one alone without a launcher. shard:
    they hold a part of the draft each."""
    from dfrot.draft.training.distributed import DistributedGroup, LocalGroup
    from dfrot.errors import InputError

    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        if shard:
            raise InputError("--shard splits a draft between processes, and this is one; start with torchrun")
        yield LocalGroup()
        return
    try:
        place = (int(os.environ["RANK"]), int(size), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    except (KeyError, ValueError):
        raise InputError(
            f"WORLD_SIZE is {size}, but RANK, MASTER_ADDR and MASTER_PORT do not say where the others are; "
            "start with torchrun or accelerate launch"
        ) from None
    group = DistributedGroup(*place, shard)
    try:
        yield group
    finally:
        group.leave()
