"""llama.cpp's Python package `gguf`, an extra of dfq: it writes GGUF files, and dequantizes their blocks."""

from __future__ import annotations

from types import ModuleType

from dfrot.errors import ResourceError


def gguf_package(needed: str = "") -> ModuleType:
    """The package. needed: the file and what in it needs the package, for the message, if it is not obvious.

    Raises ResourceError where it is not installed."""
    try:
        import gguf
    except ImportError:
        where = f"{needed}: " if needed else ""
        raise ResourceError(f"{where}the package gguf is not installed: pip install 'dfq[gguf]'") from None
    return gguf  # type: ignore[no-any-return]
