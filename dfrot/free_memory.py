"""How much memory a process may still take: what the machine has free, or what its container is still allowed."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")


def free_memory(cgroups: Path = CGROUPS) -> int:
    """Bytes. cgroups: where Linux shows a container its limit (version 2, or version 1 with a folder `memory`)."""
    free = int(psutil.virtual_memory().available)
    for folder, limit_name, used_name, idle_name in (
        (cgroups, "memory.max", "memory.current", "inactive_file"),
        (cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None:
            free = min(free, limit - used + _idle_files(folder / "memory.stat", idle_name))
    return max(free, 0)


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no such file, or no limit (`max`)."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() else None


def _idle_files(path: Path, name: str) -> int:
    """Bytes of cached files that count as used but are given up first."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    pairs = (line.split() for line in lines)
    return next((int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == name and pair[1].isdecimal()), 0)
