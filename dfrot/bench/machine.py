"""What a measurement ran on: processor, threads, load and versions."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

from dfrot.processor import fast_bfloat16
from dfrot.stage_folder import versions

CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """The machine of a measurement, JSON: `processor` (model name), `threads` (torch's), physical `cores`, `load`
    (averages over 1, 5 and 15 minutes), `bfloat16` (whether bfloat16 products are fast), `versions` of packages."""
    return {
        "processor": _processor_name(),
        "threads": torch.get_num_threads(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "load": [round(value, 2) for value in psutil.getloadavg()],
        "bfloat16": fast_bfloat16(),
        "versions": versions(),
    }


def _processor_name() -> str:
    if CPUINFO.is_file():
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
