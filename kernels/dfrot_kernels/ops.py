"""THE list of ops: schema, checks, shape inference. `torch.ops.dfq.NAME`. Families in other modules `define` theirs.

Each op has a plain-torch reference (ref.py), registered for every device; cpu.py takes over on CPU when the native
library is there. Shapes: activations are rows [M, K], weights [N, K]; conventions of codes are in ref.py, where each
function's docstring is the op's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfrot_kernels import checks, native, ref

NAMESPACE = "dfq"
_Library: Any = torch.library.Library  # untyped in torch
library = _Library(NAMESPACE, "DEF")  # module level: the registrations live as long as this object

_WEIGHT = "Tensor packed, Tensor scale, Tensor? zero, int group"
_TOKENS = "Tensor q, Tensor x_scale, Tensor x_zero"
SCHEMAS = {
    "pack": "(Tensor codes, int bits) -> Tensor",
    "unpack": "(Tensor packed, int bits, int k) -> Tensor",
    "quantize_per_token": "(Tensor x, int bits, bool symmetric, float clip) -> (Tensor, Tensor, Tensor)",
    "hadamard": "(Tensor x, Tensor base, int block) -> Tensor",
    "dequantize": "(Tensor packed, Tensor scale, Tensor? zero, int bits, int k, int group) -> Tensor",
    "w4a16_mm": f"(Tensor x, {_WEIGHT}) -> Tensor",
    "w4a8_mm": f"({_TOKENS}, {_WEIGHT}) -> Tensor",
    "w4a4_mm": f"({_TOKENS}, {_WEIGHT}) -> Tensor",
    "kv_quantize": "(Tensor x, int bits, bool symmetric, float clip) -> (Tensor, Tensor, Tensor)",
    "kv_dequantize": "(Tensor packed, Tensor scale, Tensor? zero, int width, int bits, ScalarType dtype) -> Tensor",
}


def check_pack(codes: Tensor, bits: int) -> None:
    checks.bits_ok("pack", bits)
    checks.matrix("pack", "codes", codes, (torch.uint8,))


def check_unpack(packed: Tensor, bits: int, k: int) -> None:
    checks.bits_ok("unpack", bits)
    checks.matrix("unpack", "packed", packed, (torch.uint8,))
    checks.row_bytes("unpack", packed, k, bits)


def check_quantize_per_token(x: Tensor, bits: int, symmetric: bool, clip: float) -> None:
    checks.bits_ok("quantize_per_token", bits)
    checks.matrix("quantize_per_token", "x", x, checks.FLOATS)
    checks.clip_ok("quantize_per_token", clip)


def check_hadamard(x: Tensor, base: Tensor, block: int) -> None:
    checks.blocks("hadamard", x, base, block)


def check_dequantize(packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, k: int, group: int) -> None:
    checks.bits_ok("dequantize", bits)
    checks.weight("dequantize", k, packed, scale, zero, group, bits)


def check_w4a16_mm(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int) -> None:
    if x.dim() < 1:
        checks.fail("w4a16_mm", "x is a scalar, rows are needed")
    checks.dtype("w4a16_mm", "x", x, checks.FLOATS)
    checks.weight("w4a16_mm", x.shape[-1], packed, scale, zero, group)


def _check_integer(op: str) -> Callable[..., None]:
    def check(
        q: Tensor, x_scale: Tensor, x_zero: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, group: int
    ) -> None:
        checks.tokens(op, q, x_scale, x_zero)
        checks.weight(op, q.shape[1], packed, scale, zero, group)

    return check


def check_kv_quantize(x: Tensor, bits: int, symmetric: bool, clip: float) -> None:
    checks.bits_ok("kv_quantize", bits)
    checks.dtype("kv_quantize", "x", x, checks.FLOATS)
    if x.dim() < 1 or x.shape[-1] == 0:
        checks.fail("kv_quantize", f"x has shape {tuple(x.shape)}, rows are needed")
    checks.clip_ok("kv_quantize", clip)


def check_kv_dequantize(
    packed: Tensor, scale: Tensor, zero: Tensor | None, width: int, bits: int, dtype: torch.dtype
) -> None:
    op = "kv_dequantize"
    checks.bits_ok(op, bits)
    if dtype not in checks.FLOATS:
        checks.fail(op, f"dtype is {dtype}, float32, bfloat16 or float16 is needed")
    checks.dtype(op, "packed", packed, (torch.uint8,))
    checks.dtype(op, "scale", scale, (torch.float16,))
    checks.row_bytes(op, packed, width, bits)
    rows = tuple(packed.shape[:-1])
    checks.shape(op, "scale", scale, rows)
    if zero is not None:
        checks.dtype(op, "zero", zero, (torch.uint8,))
        checks.shape(op, "zero", zero, rows)


CHECKS: dict[str, Callable[..., None]] = {
    "pack": check_pack,
    "unpack": check_unpack,
    "quantize_per_token": check_quantize_per_token,
    "hadamard": check_hadamard,
    "dequantize": check_dequantize,
    "w4a16_mm": check_w4a16_mm,
    "w4a8_mm": _check_integer("w4a8_mm"),
    "w4a4_mm": _check_integer("w4a4_mm"),
    "kv_quantize": check_kv_quantize,
    "kv_dequantize": check_kv_dequantize,
}

REFERENCES: dict[str, Callable[..., Any]] = {
    "pack": ref.pack,
    "unpack": ref.unpack,
    "quantize_per_token": ref.quantize_per_token,
    "hadamard": ref.hadamard,
    "dequantize": ref.dequantize,
    "w4a16_mm": ref.w4a16_mm,
    "w4a8_mm": ref.w4a8_mm,
    "w4a4_mm": ref.w4a8_mm,  # the same mathematics; the kernel may accumulate in 16 bits
    "kv_quantize": ref.kv_quantize,
    "kv_dequantize": ref.kv_dequantize,
}


def token_shapes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.shape[0]
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(rows, dtype=torch.float32),
        x.new_empty(rows, dtype=torch.int32),
    )


def _kv(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    lead, width = x.shape[:-1], (x.shape[-1] * bits + 7) // 8
    return (
        x.new_empty(*lead, width, dtype=torch.uint8),
        x.new_empty(lead, dtype=torch.float16),
        x.new_empty(lead, dtype=torch.uint8),
    )


SHAPES: dict[str, Callable[..., Any]] = {
    "pack": lambda codes, bits: codes.new_empty(codes.shape[0], (codes.shape[1] * bits + 7) // 8),
    "unpack": lambda packed, bits, k: packed.new_empty(packed.shape[0], k),
    "quantize_per_token": lambda x, bits, symmetric, clip: token_shapes(x),
    "hadamard": lambda x, base, block: x.new_empty(x.shape),
    "dequantize": lambda packed, scale, zero, bits, k, group: packed.new_empty(packed.shape[0], k, dtype=torch.float32),
    "w4a16_mm": lambda x, packed, scale, zero, group: x.new_empty(*x.shape[:-1], packed.shape[0]),
    "w4a8_mm": lambda q, xs, xz, packed, scale, zero, group: xs.new_empty(q.shape[0], packed.shape[0]),
    "w4a4_mm": lambda q, xs, xz, packed, scale, zero, group: xs.new_empty(q.shape[0], packed.shape[0]),
    "kv_quantize": lambda x, bits, symmetric, clip: _kv(x, bits),
    "kv_dequantize": lambda packed, scale, zero, width, bits, dtype: packed.new_empty(
        *packed.shape[:-1], width, dtype=dtype
    ),
}


def checked(name: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
    """`implementation` behind the argument checks of op `name`."""
    check = CHECKS[name]

    def call(*args: Any) -> Any:
        check(*args)
        return implementation(*args)

    return call


def register(implementations: dict[str, Callable[..., Any]], key: str) -> None:
    """Let `implementations` (op name -> function) serve dispatch key `key`, behind the argument checks."""
    for name, implementation in implementations.items():
        library.impl(name, checked(name, implementation), key)


def _reference(name: str) -> Callable[..., Any]:
    """The plain-torch reference, unless DFQ_IMPL=native forbids it: then an op without a kernel is an error."""
    implementation = REFERENCES[name]

    def call(*args: Any) -> Any:
        if native.only_native():
            raise RuntimeError(f"dfq::{name}: DFQ_IMPL=native, but no kernel serves these tensors' device")
        return implementation(*args)

    return call


def define(
    schemas: dict[str, str],
    checks: dict[str, Callable[..., None]],
    references: dict[str, Callable[..., Any]],
    shapes: dict[str, Callable[..., Any]],
) -> None:
    """Add a family of ops, each with its checks, plain-torch reference and shape inference, and list it."""
    SCHEMAS.update(schemas)
    CHECKS.update(checks)
    REFERENCES.update(references)
    SHAPES.update(shapes)
    for name, schema in schemas.items():
        library.define(name + schema)
        torch.library.register_fake(f"{NAMESPACE}::{name}", shapes[name], lib=library)
    register({name: _reference(name) for name in schemas}, "CompositeExplicitAutograd")


define(SCHEMAS, CHECKS, REFERENCES, SHAPES)
