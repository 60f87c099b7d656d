"""The native CPU library: found, loaded, checked, registered for the "CPU" dispatch key.

`libdfq_cpu.so` has a plain C interface (csrc/dfq_kernels.h), so it depends on no torch version. Two environment
variables are read once at import: DFQ_IMPL=native forbids the fallback, DFQ_IMPL=reference forces plain torch;
DFQ_CPU_ISA=scalar|avx2 picks the instruction set. Every pointer handed over belongs to a contiguous tensor that
is alive for the duration of the call.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfrot_kernels.ops import checked

ABI_VERSION = 1
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ISAS = ("scalar", "avx2")
PLAIN = {
    "pack": "runs once per weight when a checkpoint is written: plain torch",
    "unpack": "not on the path of a forward pass: plain torch",
    "dequantize": "not on the path of a forward pass: plain torch",
}

_library: ctypes.CDLL | None = None
_status = "not loaded"


def _find() -> Path | None:
    spec = importlib.util.find_spec("dfrot_kernels")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        candidate = Path(folder) / "libdfq_cpu.so"
        if candidate.is_file():
            return candidate
    return None


def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library or None, and the reason in one sentence."""
    wanted = os.environ.get("DFQ_IMPL", "")
    if wanted not in ("", "native", "reference"):
        raise RuntimeError(f"DFQ_IMPL={wanted!r} is unknown; use native or reference, or unset it")
    if wanted == "reference":
        return None, "DFQ_IMPL=reference asks for plain torch"
    path = _find()
    reason = "libdfq_cpu.so is not installed (a pure wheel, or no compiler at build time)"
    if path is not None:
        library = ctypes.CDLL(str(path))
        found = library.dfq_abi_version()
        if found == ABI_VERSION:
            return library, ""
        reason = f"{path}: ABI {found}, this package needs {ABI_VERSION}; build again with pip install"
    if wanted == "native":
        raise RuntimeError(f"DFQ_IMPL=native, but {reason}")
    return None, reason


def active() -> bool:
    """Whether the native library serves the CPU."""
    return _library is not None


def status() -> str:
    """Why the current implementation is the current one."""
    return _status


def isa() -> str:
    """The instruction set in use: scalar or avx2."""
    if _library is None:
        raise RuntimeError(f"no native library: {_status}")
    return ISAS[_library.dfq_isa()]


def available_isas() -> list[str]:
    """What this processor can run, weakest first."""
    if _library is None:
        return []
    return [name for number, name in enumerate(ISAS) if _library.dfq_isa_supported(number)]


def set_isa(name: str) -> None:
    """Switch the instruction set of the whole process (tests run them all on one machine)."""
    global _status
    if _library is None:
        raise RuntimeError(f"cannot choose {name}: {_status}")
    if name not in ISAS:
        raise ValueError(f"instruction set {name!r} is unknown; known: {', '.join(ISAS)}")
    if _library.dfq_set_isa(ISAS.index(name)) != 0:
        raise RuntimeError(f"this processor cannot run {name}; it can run {', '.join(available_isas())}")
    _status = f"libdfq_cpu.so, {name} chosen by name"


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None else None)


def _call(name: str, *args: Any) -> None:
    """Call a C function; integers are passed as int64, tensors as pointers, floats as float."""
    assert _library is not None
    converted = []
    for value in args:
        if value is None or isinstance(value, Tensor):
            converted.append(_pointer(value))
        elif isinstance(value, float):
            converted.append(ctypes.c_float(value))
        else:
            converted.append(ctypes.c_int64(int(value)))
    code = getattr(_library, name)(*converted, ctypes.c_int64(torch.get_num_threads()))
    if code != 0:
        raise RuntimeError(f"{name} failed with code {code}: out of memory, or arguments that the kernel refuses")


def quantize_per_token(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    x = x.contiguous()
    rows, k = x.shape
    codes = torch.empty(rows, k, dtype=torch.int8)
    scale, zero = torch.empty(rows, dtype=torch.float32), torch.empty(rows, dtype=torch.int32)
    _call("dfq_quantize_per_token", x, DTYPE_CODES[x.dtype], rows, k, bits, symmetric, float(clip), codes, scale, zero)
    return codes, scale, zero


def hadamard(x: Tensor, base: Tensor, block: int) -> Tensor:
    if x.dtype not in DTYPE_CODES:
        from dfrot_kernels import ref

        return ref.hadamard(x, base, block)  # float64 serves exact fusing, never the forward pass
    x, base = x.contiguous(), base.to(torch.float32).contiguous()
    out = torch.empty_like(x)
    rows = x.numel() // block
    _call("dfq_hadamard", x, DTYPE_CODES[x.dtype], rows, block, base, base.shape[0], out)
    return out


def w4a16_mm(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int) -> Tensor:
    k, n = x.shape[-1], packed.shape[0]
    rows = x.reshape(-1, k).contiguous()
    out = torch.empty(rows.shape[0], n, dtype=x.dtype)
    zero = zero.contiguous() if zero is not None else None
    weight = (packed.contiguous(), scale.contiguous(), zero)
    _call("dfq_w4a16_mm", rows, DTYPE_CODES[x.dtype], rows.shape[0], n, k, *weight, group, out)
    return out.reshape(*x.shape[:-1], n)


def _integer_mm(a_bits: int) -> Callable[..., Tensor]:
    def mm(
        q: Tensor, x_scale: Tensor, x_zero: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int
    ) -> Tensor:
        m, k = q.shape
        out = torch.empty(m, packed.shape[0], dtype=torch.float32)
        tokens = (q.contiguous(), x_scale.contiguous(), x_zero.contiguous())
        zero = zero.contiguous() if zero is not None else None
        weight = (packed.contiguous(), scale.contiguous(), zero)
        _call("dfq_w4a8_mm", *tokens, m, packed.shape[0], k, *weight, group, a_bits, out)
        return out

    return mm


def kv_quantize(x: Tensor, bits: int, symmetric: bool, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    x = x.contiguous()
    lead, width = x.shape[:-1], x.shape[-1]
    packed = torch.empty(*lead, (width * bits + 7) // 8, dtype=torch.uint8)
    scale, zero = torch.empty(lead, dtype=torch.float16), torch.empty(lead, dtype=torch.uint8)
    rows = scale.numel()
    _call("dfq_kv_quantize", x, DTYPE_CODES[x.dtype], rows, width, bits, symmetric, float(clip), packed, scale, zero)
    return packed, scale, zero


def kv_dequantize(
    packed: Tensor, scale: Tensor, zero: Tensor | None, width: int, bits: int, dtype: torch.dtype
) -> Tensor:
    if dtype not in DTYPE_CODES:
        raise ValueError(f"dfq::kv_dequantize: dtype {dtype} is not float32, bfloat16 or float16")
    out = torch.empty(*packed.shape[:-1], width, dtype=dtype)
    zero = zero.contiguous() if zero is not None else None
    stored = (packed.contiguous(), scale.contiguous(), zero)
    _call("dfq_kv_dequantize", *stored, scale.numel(), width, bits, DTYPE_CODES[dtype], out)
    return out


KERNELS: dict[str, Callable[..., Any]] = {
    "quantize_per_token": quantize_per_token,
    "hadamard": hadamard,
    "w4a16_mm": w4a16_mm,
    "w4a8_mm": _integer_mm(8),
    "w4a4_mm": _integer_mm(4),
    "kv_quantize": kv_quantize,
    "kv_dequantize": kv_dequantize,
}


def register(library: torch.library.Library) -> None:
    """Load the shared library and let it serve the CPU; without it the references stay."""
    global _library, _status
    _library, _status = _load()
    if _library is None:
        return
    wanted = os.environ.get("DFQ_CPU_ISA")
    if wanted:
        set_isa(wanted)
        _status = f"libdfq_cpu.so, DFQ_CPU_ISA={wanted}"
    else:
        _status = f"libdfq_cpu.so, best instruction set of this processor that dfq has ({isa()})"
    for name, kernel in KERNELS.items():
        library.impl(name, checked(name, kernel), "CPU")
