"""What this machine can do, measured: bytes read per second, and products per second of the best dense multiply.

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

BEYOND = 4  # operands together are this many times the last-level cache
LEAST_BYTES = 128 << 20
PROBE = 1536  # order of the square products that stand for the arithmetic peak


@dataclass(frozen=True)
class Roofline:
    """read: bytes/s; bf16, int8: operations/s (a multiply-add counts two). cache: bytes of the last level."""

    read: float
    bf16: float
    int8: float
    cache: int

    def seconds(self, nbytes: float, operations: float, kind: str | None, read: float | None = None) -> float:
        """The least time of a kernel that reads `nbytes` and computes `operations` of `kind` (bf16, int8)."""
        compute = operations / (self.bf16 if kind == "bf16" else self.int8) if kind else 0.0
        return max(nbytes / (read or self.read), compute)

    def to_dict(self) -> dict[str, float]:
        return {"read_bytes_per_s": self.read, "bf16_per_s": self.bf16, "int8_per_s": self.int8, "cache": self.cache}


def cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Size of the last-level cache; 32 MiB where the system does not say."""
    sizes = []
    for path in sorted(root.glob("index*/size")) if root.is_dir() else []:
        match = re.fullmatch(r"(\d+)([KMG]?)", path.read_text(encoding="ascii").strip())
        if match:
            sizes.append(int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]])
    return max(sizes, default=32 << 20)


def ring_bytes(cache: int) -> int:
    """How much memory the operands of one contender must cover, so that no call finds them in a cache."""
    return max(LEAST_BYTES, BEYOND * cache)


def readers(nbytes: int) -> dict[str, tuple[Call, int]]:
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


def measure(repeats: int = 5, order: int = PROBE) -> Roofline:
    """The roofline of this machine with torch's current number of threads: the best of a few ways and `repeats`."""
    cache = cache_bytes()
    ways = readers(ring_bytes(cache))
    times = race({name: [call] for name, (call, _) in ways.items()}, repeats)
    read = max(ways[name][1] / time.best for name, time in times.items())
    wide = torch.ones(order, order, dtype=torch.bfloat16)
    codes = torch.ones(order, order, dtype=torch.int8)
    products = race({"bf16": [lambda: wide @ wide], "int8": [lambda: torch._int_mm(codes, codes)]}, repeats)
    work = 2.0 * order**3
    return Roofline(read, work / products["bf16"].best, work / products["int8"].best, cache)
