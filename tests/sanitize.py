"""Runs tests against a native library built with sanitizers: python tests/sanitize.py LIBRARY [pytest arguments].

The sanitizers' runtimes must be loaded before Python (LD_PRELOAD); `make sanitize` does all of it. A wrong access or an
undefined operation ends the process with a report of where it happened.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from dfrot_kernels import native


def main(library: str, arguments: list[str]) -> int:
    path = Path(library).resolve()
    if not hasattr(ctypes.CDLL(None), "__asan_init"):
        sys.exit("the sanitizers' runtime is not loaded; run make sanitize")
    native._find = lambda: path  # type: ignore[assignment]
    if not native.load():
        sys.exit(f"{path}: {native.status()}")
    return int(pytest.main(["-p", "no:cacheprovider", *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
