"""The native CPU library: found, loaded, checked, and registered for the "CPU" dispatch key.

libdfq_cpu has a plain C interface (abi/, csrc/dfq_abi.h), so it depends on no torch version. Two environment variables
are read once, at import: DFQ_IMPL=native forbids every fallback, DFQ_IMPL=reference forces plain torch;
DFQ_CPU_ISA picks the instruction set (ISAS). bindings.py has the functions that ops call.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import sysconfig
import warnings
from pathlib import Path

import torch
from torch import Tensor

from dfrot_kernels import abi, bindings

# any processor, then those of x86-64 and of 64-bit ARM, each weakest first; the index is the number in the C interface
ISAS = tuple(name.removeprefix("DFQ_").lower() for name in abi.ISA.values)
NAMES = ("libdfq_cpu.so", "libdfq_cpu.dylib")

_dispatch_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.peek_interpreter_stack
_tracing = torch._C._get_tracing_state

_library: ctypes.CDLL | None = None
_status = "not loaded"


def _find() -> Path | None:
    """Where the library is: beside this file in a wheel; in an editable install, in the environment's own folder."""
    package = sys.modules[__name__.partition(".")[0]].__path__
    installed = [Path(sysconfig.get_path(kind)) / "dfrot_kernels" for kind in ("platlib", "purelib")]
    for folder in [*map(Path, package), *installed]:
        for name in NAMES:
            if (folder / name).is_file():
                return folder / name
    return None


def _open(path: Path) -> ctypes.CDLL | str:
    """The checked library, or why it cannot be used."""
    try:
        library = ctypes.CDLL(str(path))
        functions = {name: getattr(library, name) for name in abi.FUNCTIONS}
        library.dfq_use_openmp.argtypes = [ctypes.c_char_p]
        library.dfq_abi_describe.restype = ctypes.c_char_p
        description = library.dfq_abi_describe().decode().splitlines()
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded: {error}"
    different = abi.difference(description, abi.description())
    if different:
        return f"{path} {different}: install dfq again to rebuild it"
    for name, function in functions.items():
        function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int
        bindings.functions[name] = function
    return library


def _openmp() -> ctypes.CDLL | None:
    """Torch's OpenMP library, if it is one that this process has and that can be told apart from others'."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    paths = {Path(fields[5]) for line in lines if len(fields := line.split(maxsplit=5)) == 6}
    loaded = [path for path in paths if path.name.startswith(("libgomp", "libiomp5", "libomp"))]
    home = Path(torch.__file__).parent
    of_torch = [path for path in loaded if home in path.parents or home.parent / "torch.libs" == path.parent]
    candidates = of_torch or loaded
    return ctypes.CDLL(str(candidates[0])) if len(candidates) == 1 else None


def share_threads(share: bool) -> bool:
    """Run the kernels on torch's OpenMP threads (the default where they are found), or on threads of their own.

    Returns whether they run on torch's. Not while another thread runs a kernel."""
    assert _library is not None
    openmp = _openmp() if share else None
    names = {
        "parallel": "GOMP_parallel",
        "num_threads": "omp_get_num_threads",
        "thread_num": "omp_get_thread_num",
    }
    if openmp is None or not all(hasattr(openmp, name) for name in names.values()):
        _library.dfq_use_openmp(None)
        return False
    addresses = {field: ctypes.cast(getattr(openmp, name), ctypes.c_void_p).value or 0 for field, name in names.items()}
    words = abi.words("dfq_openmp", addresses)
    _library.dfq_use_openmp(struct.pack(f"={len(words)}q", *words))
    return True


def load() -> bool:
    """Load the library as DFQ_IMPL and DFQ_CPU_ISA ask; whether it serves the CPU from now on.

    Raises:
        RuntimeError: an unknown choice, one this machine cannot honour, or DFQ_IMPL=native without a usable library.
    """
    global _library, _status
    choice = os.environ.get("DFQ_IMPL", "")
    if choice not in ("", "native", "reference"):
        raise RuntimeError(f"DFQ_IMPL={choice!r} is unknown; use native or reference, or unset it")
    if choice == "reference":
        _status = "DFQ_IMPL=reference asks for plain torch"
        return False
    path = _find()
    opened = _open(path) if path else f"{NAMES[0]} is not installed (a pure wheel, or no C++ compiler at build time)"
    if isinstance(opened, str):
        if choice == "native":
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
    number: int = _library.dfq_isa()
    return ISAS[number]


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
