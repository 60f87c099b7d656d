"""What this machine can do, measured: bytes read per second, and operations per second of the fastest dense product.

A kernel that streams its weights cannot beat the first, one that reuses them cannot beat the second. Both are taken
in the process that times the kernels, with the same number of threads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dfrot.bench.clock import Call, race

CACHES = 4  # operands together are this many times the last-level cache
MIN_RING_BYTES = 128 << 20
DEFAULT_CACHE = 32 << 20  # bytes, where the system does not report the cache
PROBE = 1536  # order of the square products that measure the arithmetic peaks
UNITS = {"": 0, "K": 10, "M": 20, "G": 30}


@dataclass(frozen=True)
class Roofline:
    """Measured peaks of this machine."""

    read: float
    """Bytes read per second."""
    bf16: float
    """bfloat16 operations per second; a multiply-add counts two."""
    int8: float
    """int8 operations per second."""
    cache: int
    """Bytes of the last-level cache."""

    def seconds(self, nbytes: float, operations: float, kind: str | None, read: float | None = None) -> float:
        """The least time of a kernel that reads `nbytes` bytes and computes `operations` of `kind` (bf16, int8, or None
        for none). read: bandwidth in bytes/s to use instead of the measured one."""
        compute = operations / (self.bf16 if kind == "bf16" else self.int8) if kind else 0.0
        return max(nbytes / (read or self.read), compute)

    def to_dict(self) -> dict[str, float]:
        """JSON."""
        return {"read_bytes_per_s": self.read, "bf16_per_s": self.bf16, "int8_per_s": self.int8, "cache": self.cache}


def cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Size of the last-level cache; DEFAULT_CACHE where the system does not report it."""
    sizes = []
    for path in sorted(root.glob("index*/size")) if root.is_dir() else []:
        match = re.fullmatch(r"(\d+)([KMG]?)", path.read_text(encoding="ascii").strip())
        if match:
            sizes.append(int(match[1]) << UNITS[match[2]])
    return max(sizes, default=DEFAULT_CACHE)


def ring_bytes(cache: int) -> int:
    """Bytes of memory that the operands of one contender must cover so that no call finds them in a cache."""
    return max(MIN_RING_BYTES, CACHES * cache)


def read_probes(nbytes: int) -> dict[str, tuple[Call, int]]:
    """Ways to read `nbytes` of memory once: name -> (call, bytes). The fastest one counts."""
    data: Tensor = torch.ones(nbytes // 4, dtype=torch.float32)
    rows = data[: len(data) // 8192 * 8192].view(-1, 8192)
    vector = torch.ones(8192)
    size = data.numel() * 4
    return {
        "sum": (lambda: data.sum(), size),
        "max": (lambda: data.view(torch.uint8).max(), size),
        "matrix-vector": (lambda: torch.mv(rows, vector), rows.numel() * 4),
    }


def fastest_read_probe(nbytes: int, repeats: int) -> tuple[Call, int]:
    """The fastest of `read_probes` here, (call, bytes): the best of `repeats` samples, taken in turns."""
    probes = read_probes(nbytes)
    times = race({name: [call] for name, (call, _) in probes.items()}, repeats)
    return probes[max(probes, key=lambda name: probes[name][1] / times[name].best)]


def measure(repeats: int = 5, order: int = PROBE) -> Roofline:
    """The roofline of this machine with torch's current number of threads: the best of `repeats` and of the probes."""
    cache = cache_bytes()
    probes = read_probes(ring_bytes(cache))
    times = race({name: [call] for name, (call, _) in probes.items()}, repeats)
    read = max(probes[name][1] / time.best for name, time in times.items())
    wide = torch.ones(order, order, dtype=torch.bfloat16)
    codes = torch.ones(order, order, dtype=torch.int8)
    products = race({"bf16": [lambda: wide @ wide], "int8": [lambda: torch._int_mm(codes, codes)]}, repeats)
    operations = 2.0 * order**3
    return Roofline(read, operations / products["bf16"].best, operations / products["int8"].best, cache)
