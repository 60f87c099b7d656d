"""Memory given back to the system: pages of mapped checkpoints, and the C library's free lists.

Nothing here is about kernels or their library. It stands in this package because it calls the C library of the process,
and ctypes is used nowhere else; loading and rotating use it, so that they hold a checkpoint in memory only once.
"""

from __future__ import annotations

import ctypes
import mmap
from array import array
from pathlib import Path

from torch import Tensor

_OF_A_FILE = (0b000, 0b001, 0b101)  # bits 63 (present), 62 (swapped) and 61 (file) of a pagemap entry

_M_ARENA_MAX = -8  # of glibc's malloc.h


def drop_pages(x: Tensor) -> int:
    """Give back the resident pages of a tensor that is a view of a mapped file: whoever reads it again gets the file's
    bytes again. Returns the bytes given back; 0 where x lies elsewhere, was written to, or the system is not Linux.

    A loaded checkpoint is such a mapping. What is prepacked from it would count twice otherwise, until all is loaded.
    """
    page = mmap.PAGESIZE
    begin, end = -(-x.data_ptr() // page) * page, (x.data_ptr() + x.numel() * x.element_size()) // page * page
    if end <= begin or not x.is_cpu or not x.is_contiguous():
        return 0
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            pagemap.seek(begin // page * 8)
            entries = array("Q", pagemap.read((end - begin) // page * 8))
    except OSError:
        return 0
    # a page without bit 61 (of a file) or with bit 62 (swapped out) holds something that no file has
    if len(entries) != (end - begin) // page or any((entry >> 61) not in _OF_A_FILE for entry in set(entries)):
        return 0
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is None or advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED) != 0:
        return 0
    return end - begin


def release_memory() -> None:
    """Hand freed pages of the C heap back to the system (glibc's malloc_trim; elsewhere nothing happens).

    glibc keeps what lies below a live allocation, which adds up to hundreds of megabytes when tensors of a few
    megabytes come and go layer after layer."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def share_heap() -> None:
    """Let threads that start from now on take memory from the main heap of the process (glibc's M_ARENA_MAX; elsewhere
    nothing happens). This cannot be undone.

    glibc gives every thread a heap of its own, and what one of them frees no other can use: threads that take turns
    with large tensors would need that memory as often as there are threads."""
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(_M_ARENA_MAX, 1)
