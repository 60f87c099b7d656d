"""Machines by name: published peaks, and the shares of them that a plan takes to be reached (`work.KINDS`).

Peaks are dense ones, from the makers' data sheets. dfq's stages run on CPUs: a row with GPUs says how long the same
work would take there at the stated shares, not that dfq uses them.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from dfrot.errors import InputError
from dfrot.planning.work import FIXED, KINDS

TOGETHER = 0.85
"""What several devices reach together, as a share of their sum."""
THIS = "this"
_NAME = re.compile(r"(?:(\d{1,4})x)?(.+)")


@dataclass(frozen=True)
class Machine:
    """Peaks of one device, FLOP/s, and bytes."""

    fp64: float
    fp32: float
    bf16: float
    int8: float
    memory: float
    """Bytes of memory of one device; 0: what the machine has."""
    disk: float
    """Bytes per second."""


NVME = 3e9  # bytes per second of one NVMe drive: read, about as much written
MACHINES: dict[str, Machine] = {
    "A100": Machine(9.7e12, 19.5e12, 312e12, 624e12, 80e9, NVME),
    "H100": Machine(34e12, 67e12, 989e12, 1979e12, 80e9, NVME),
    "H200": Machine(34e12, 67e12, 989e12, 1979e12, 141e9, NVME),
    "B200": Machine(37e12, 75e12, 2250e12, 4500e12, 180e9, NVME),
    "L40S": Machine(1.4e12, 91.6e12, 362e12, 733e12, 48e9, NVME),
    "RTX4090": Machine(1.3e12, 82.6e12, 165e12, 661e12, 24e9, NVME),
    "EPYC-9654": Machine(3.7e12, 7.4e12, 14.7e12, 29.5e12, 0, NVME),  # 96 cores, 2.4 GHz, 16 and 32 FLOPs a cycle
    "EPYC-9755": Machine(11.1e12, 22.1e12, 44.2e12, 88.5e12, 0, NVME),  # 128 cores, 2.7 GHz, 32 and 64
    "XEON-8480": Machine(3.6e12, 7.2e12, 114e12, 229e12, 0, NVME),  # 56 cores, 2.0 GHz, AVX-512 and AMX
}
"""Name -> one device."""


def rates_of(name: str) -> tuple[dict[str, float], str]:
    """Units per second by kind of work, and the machine in words, for `8xH100` or `H100`.

    Raises InputError, with the names that are known, for any other."""
    match = _NAME.fullmatch(name.strip())
    known = {key.lower(): key for key in MACHINES}
    key = known.get(match[2].lower()) if match is not None else None
    count = int(match[1] or 1) if match is not None else 0
    if key is None or count < 1:
        near = difflib.get_close_matches(name.lower(), [*known, THIS], 1)
        hint = f"; nearest: {known.get(near[0], near[0])}" if near else ""
        raise InputError(
            f"`on` {name[:40]!r}: is no machine that is known; give {THIS}, or NAME or 8xNAME of "
            f"{', '.join(MACHINES)}{hint}",
            field="on",
        )
    machine = MACHINES[key]
    together = 1.0 if count == 1 else count * TOGETHER
    rates = dict(FIXED)
    for kind, work in KINDS.items():
        if work.peak:
            several = 1.0 if work.peak == "disk" else together
            rates[kind] = getattr(machine, work.peak) * work.efficiency / work.per_unit * several
    memory = f", {count * machine.memory / 1e9:.0f} GB" if machine.memory else ""
    return rates, f"{count} x {key}{memory}: published peaks at the stated shares"
