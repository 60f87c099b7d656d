"""The native CPU library: found, loaded, checked, and registered for the "CPU" dispatch key.

libdfq_cpu has a plain C interface (csrc/dfq_kernels.h), so it depends on no torch version. Two environment variables
are read once, at import: DFQ_IMPL=native forbids every fallback, DFQ_IMPL=reference forces plain torch;
DFQ_CPU_ISA picks the instruction set (ISAS). The wrappers that ops call are in cpu.py.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
import sysconfig
import warnings
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

ABI_VERSION = 3
# numbered as in csrc/dfq_kernels.h: any processor, then those of x86-64 and of 64-bit ARM, each weakest first
ISAS = ("scalar", "avx2", "avx512", "neon", "dotprod", "i8mm")
NAMES = ("libdfq_cpu.so", "libdfq_cpu.dylib")

# Arguments of each C function: p pointer, i int64, f float. The number of threads (int64) comes last everywhere.
SIGNATURES = {
    "dfq_pack": "piiip",
    "dfq_unpack": "piiip",
    "dfq_dequantize": "pppiiiip",
    "dfq_quantize_per_token": "piiiiifppp",
    "dfq_hadamard": "piiipip",
    "dfq_w4a16_mm": "piiiipppip",
    "dfq_w4a8_mm": "pppiiipppip",
    "dfq_kv_quantize": "piiiiifppp",
    "dfq_kv_dequantize": "pppiiiip",
    "dfq_prepack": "piiipp",
    "dfq_unprepack": "piip",
    "dfq_tiled_w4a16": "piiiipppipp",
    "dfq_tiled_w4a8": "pppiiippppipip",
    "dfq_decode": "pppppiiip",
    "dfq_decode_tree": "pppppiipp",
    "dfq_decoder_words": "pppp",
    "dfq_prefill_before": "pippppiiiip",
    "dfq_prefill_after": "pippi",
    "dfq_prefill_norm": "ppi",
    "dfq_draft_pass": "pppipipppiipiiippp",
    "dfq_draft_words": "pppp",
    "dfq_dense": "piiiipp",
    "dfq_hadamard_quantize": "piiipiiiifppp",
    "dfq_rmsnorm_quantize": "piiippfiifppp",
    "dfq_silu_mul_hadamard_quantize": "ppiiipiiiifppp",
    "dfq_kv_append": "ppiiiiiippppppiiifpii",
    "dfq_kv_attention": "piiiiiiippppppiifpiippippipp",
}
_OF_A_FILE = (0b000, 0b001, 0b101)  # bits 63 (present), 62 (swapped) and 61 (file) of a pagemap entry
_NUMBERS = (int, float)
_WORDS = str.maketrans("pif", "qqd")  # as dfq_packed reads them: ctypes takes as long per argument as struct for all
_PACKED = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)

_dispatch_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.peek_interpreter_stack
_tracing = torch._C._get_tracing_state

_library: ctypes.CDLL | None = None
_calls: dict[str, tuple[Callable[..., bytes], Callable[[bytes], int]]] = {}  # name -> packs the arguments, calls
_threads = torch.get_num_threads
_status = "not loaded"


def _find() -> Path | None:
    import dfrot_kernels

    # next to this file in a wheel; in an editable install, in the environment's own dfrot_kernels folder
    installed = [Path(sysconfig.get_path(kind)) / "dfrot_kernels" for kind in ("platlib", "purelib")]
    for folder in [*map(Path, dfrot_kernels.__path__), *installed]:
        for name in NAMES:
            if (folder / name).is_file():
                return folder / name
    return None


def _open(path: Path) -> ctypes.CDLL | str:
    """The checked library, or why it cannot be used."""
    try:
        library = ctypes.CDLL(str(path))
        found = library.dfq_abi_version()
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded: {error}"
    if found != ABI_VERSION:
        return f"{path} has ABI {found}, this package needs {ABI_VERSION}: install dfq again to rebuild it"
    addresses = {}
    if hasattr(library, "dfq_packed"):
        library.dfq_packed.argtypes, library.dfq_packed.restype = [ctypes.c_char_p], ctypes.c_void_p
        addresses = {name: library.dfq_packed(name.encode()) for name in SIGNATURES}
    missing = ["dfq_packed"] if not addresses else [name for name, found in addresses.items() if not found]
    if missing or not hasattr(library, "dfq_use_openmp"):
        return f"{path} lacks {[*missing, 'dfq_use_openmp'][0]}: install dfq again to rebuild it"
    for name, signature in SIGNATURES.items():
        _calls[name] = struct.Struct("=" + (signature + "i").translate(_WORDS)).pack, _PACKED(addresses[name])
    library.dfq_use_openmp.argtypes = [ctypes.c_void_p] * 3
    return library


def _openmp() -> ctypes.CDLL | None:
    """Torch's OpenMP library, if it is one that this process has and that can be told apart from others'."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    paths = {Path(fields[5]) for line in lines if len(fields := line.split(maxsplit=5)) == 6}
    found = [path for path in paths if path.name.startswith(("libgomp", "libiomp5", "libomp"))]
    home = Path(torch.__file__).parent
    ours = [path for path in found if home in path.parents or home.parent / "torch.libs" == path.parent]
    return ctypes.CDLL(str((ours or found)[0])) if len(ours or found) == 1 else None


def share_threads(share: bool) -> bool:
    """Run the kernels on torch's OpenMP threads (the default where they are found), or on threads of their own.

    Returns whether they run on torch's. Not while another thread runs a kernel."""
    assert _library is not None
    openmp = _openmp() if share else None
    names = ("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num")
    if openmp is None or not all(hasattr(openmp, name) for name in names):
        _library.dfq_use_openmp(None, None, None)
        return False
    _library.dfq_use_openmp(*(ctypes.cast(getattr(openmp, name), ctypes.c_void_p) for name in names))
    return True


def load() -> bool:
    """Load the library as DFQ_IMPL and DFQ_CPU_ISA ask; whether it serves the CPU from now on.

    Raises:
        RuntimeError: an unknown choice, one this machine cannot honour, or DFQ_IMPL=native without a usable library.
    """
    global _library, _status
    wanted = os.environ.get("DFQ_IMPL", "")
    if wanted not in ("", "native", "reference"):
        raise RuntimeError(f"DFQ_IMPL={wanted!r} is unknown; use native or reference, or unset it")
    if wanted == "reference":
        _status = "DFQ_IMPL=reference asks for plain torch"
        return False
    path = _find()
    opened = _open(path) if path else f"{NAMES[0]} is not installed (a pure wheel, or no C++ compiler at build time)"
    if isinstance(opened, str):
        if wanted == "native":
            raise RuntimeError(f"DFQ_IMPL=native, but {opened}")
        if path:  # present and unusable is a fault of the installation; absent is a way to install
            warnings.warn(f"dfq computes in plain torch: {opened}", RuntimeWarning, stacklevel=2)
        _status = opened
        return False
    _library = opened
    isa_wanted = os.environ.get("DFQ_CPU_ISA", "")
    if isa_wanted:
        try:
            set_isa(isa_wanted)
        except (ValueError, RuntimeError) as error:
            raise RuntimeError(f"DFQ_CPU_ISA={isa_wanted!r}: {error}") from None
        _status = f"libdfq_cpu, DFQ_CPU_ISA={isa_wanted}"
    else:
        _status = _choice(isa(), platform.machine())
    share_threads(True)
    return True


def _choice(isa: str, machine: str) -> str:
    """Why the library runs `isa` on a processor that the system calls `machine`."""
    if isa == "scalar" and machine not in ("x86_64", "AMD64", "amd64", "aarch64", "arm64"):
        return f"libdfq_cpu, portable code: dfq has no kernels for the instruction sets of {machine}"
    return f"libdfq_cpu, the best instruction set that dfq and this processor share ({isa})"


def only_native() -> bool:
    """Whether DFQ_IMPL=native forbids plain torch as a fallback."""
    return os.environ.get("DFQ_IMPL") == "native"


def active() -> bool:
    """Whether the native library serves the CPU."""
    return _library is not None


def status() -> str:
    """Why the current implementation is the current one."""
    return _status


def isa() -> str:
    """The instruction set in use, one of ISAS."""
    if _library is None:
        raise RuntimeError(f"no native library: {_status}")
    return ISAS[_library.dfq_isa()]


def available_isas() -> list[str]:
    """What the library has and this processor can run, weakest first; empty without a library."""
    if _library is None:
        return []
    return [name for number, name in enumerate(ISAS) if _library.dfq_isa_supported(number)]


def set_isa(name: str) -> None:
    """Switch the instruction set of the whole process, so that tests run them all on one machine."""
    global _status
    if _library is None:
        raise RuntimeError(f"cannot choose {name}: {_status}")
    if name not in ISAS:
        raise ValueError(f"instruction set {name!r} is unknown; known: {', '.join(ISAS)}")
    if _library.dfq_set_isa(ISAS.index(name)) != 0:
        raise RuntimeError(f"this processor cannot run {name}; it can run {', '.join(available_isas())}")
    _status = f"libdfq_cpu, {name} chosen by name"


def call(name: str, *args: Tensor | int | float | None) -> None:
    """Call C function `name` with as many threads as torch uses. Tensors are passed by address and must be
    contiguous; None is a null pointer.

    Raises:
        MemoryError: no memory for the scratch space.
        RuntimeError: arguments outside the kernel's limits (an inner size beyond 2^19).
    """
    pack, function = _calls[name]
    # told apart by the type of numbers: isinstance(value, Tensor) runs Python code and costs more than the call
    numbers = [
        value if type(value) in _NUMBERS else 0 if value is None else value.data_ptr()  # type: ignore[union-attr]
        for value in args
    ]
    code = function(pack(*numbers, _threads()))
    if code:
        _refuse(name, code)


def call_addresses(name: str, *args: int | float) -> None:
    """`call` with addresses (Tensor.data_ptr, or 0) in place of tensors."""
    pack, function = _calls[name]
    code = function(pack(*args, _threads()))
    if code:
        _refuse(name, code)


def _refuse(name: str, code: int) -> NoReturn:
    if code == 1:
        raise MemoryError(f"{name}: no memory for scratch space")
    raise RuntimeError(f"{name}: arguments beyond the kernel's limits (code {code}); DFQ_IMPL=reference has none")


def direct(x: Tensor) -> bool:
    """Whether a kernel may be called on x past the dispatcher: a plain CPU tensor, and nobody traces or transforms."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.is_cpu
        and not x.requires_grad
        and not x.is_neg()
        and _dispatch_modes() == 0
        and _transforms() is None
        and _tracing() is None
        and _library is not None
    )


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
