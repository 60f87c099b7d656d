"""What a launcher (torchrun, accelerate launch) says in the environment of the processes that it starts."""

from __future__ import annotations

import os


def world_size() -> int:
    """The number of processes that the launcher started; 1 without a launcher."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdigit() else 1


def place_on_machine() -> int:
    """The number of this process on its machine."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))
    return int(local) if local.isdigit() else 0
