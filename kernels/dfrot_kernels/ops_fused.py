"""Row ops that keep a row in cache from the first step to its codes. Docstrings are in ref_fused.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfrot_kernels import checks, ops, ref_fused
from dfrot_kernels.native import call

_QUANTIZE = "int bits, bool symmetric, float clip) -> (Tensor, Tensor, Tensor)"
SCHEMAS = {
    "hadamard_quantize": f"(Tensor x, Tensor? base, int block, {_QUANTIZE}",
    "rmsnorm_quantize": f"(Tensor x, Tensor(a!)? residual, Tensor? weight, float epsilon, {_QUANTIZE}",
    "silu_mul_hadamard_quantize": f"(Tensor gate, Tensor up, Tensor? base, int block, {_QUANTIZE}",
}
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
Tokens = tuple[Tensor, Tensor, Tensor]


def _check(op: str, name: str, x: Tensor, base: Tensor | None, block: int, bits: int, clip: float) -> None:
    checks.bits_ok(op, bits)
    checks.matrix(op, name, x, checks.FLOATS)
    checks.clip_ok(op, clip)
    if base is not None:
        checks.blocks(op, x, base, block)


def _same(op: str, name: str, tensor: Tensor, like: Tensor, shape: tuple[int, ...]) -> None:
    checks.dtype(op, name, tensor, (like.dtype,))
    checks.shape(op, name, tensor, shape)


def check_hadamard_quantize(
    x: Tensor, base: Tensor | None, block: int, bits: int, symmetric: bool, clip: float
) -> None:
    _check("hadamard_quantize", "x", x, base, block, bits, clip)


def check_rmsnorm_quantize(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, epsilon: float, bits: int, symmetric: bool, clip: float
) -> None:
    op = "rmsnorm_quantize"
    _check(op, "x", x, None, 0, bits, clip)
    if not epsilon >= 0:
        checks.fail(op, f"epsilon is {epsilon}, 0 or more is needed")
    if residual is not None:
        _same(op, "residual", residual, x, tuple(x.shape))
        if not residual.is_contiguous():
            checks.fail(op, "residual is not contiguous; it is written in place")
    if weight is not None:
        _same(op, "weight", weight, x, (x.shape[1],))


def check_silu_mul_hadamard_quantize(
    gate: Tensor, up: Tensor, base: Tensor | None, block: int, bits: int, symmetric: bool, clip: float
) -> None:
    op = "silu_mul_hadamard_quantize"
    _check(op, "gate", gate, base, block, bits, clip)
    _same(op, "up", up, gate, tuple(gate.shape))


def _tokens(m: int, k: int) -> Tokens:
    return torch.empty((m, k), dtype=torch.int8), torch.empty(m), torch.empty(m, dtype=torch.int32)


def _turn(base: Tensor | None, block: int) -> tuple[Tensor | None, int, int]:
    if base is None:
        return None, 0, 0
    if base.dtype != torch.float32:  # to() takes a microsecond for nothing
        base = base.to(torch.float32)
    return base.contiguous(), base.shape[0], block


def hadamard_quantize(x: Tensor, base: Tensor | None, block: int, bits: int, symmetric: bool, clip: float) -> Tokens:
    m, k = x.shape
    out = _tokens(m, k)
    turn = _turn(base, block)
    call("dfq_hadamard_quantize", x.contiguous(), _DTYPES[x.dtype], m, k, *turn, bits, int(symmetric), clip, *out)
    return out


def rmsnorm_quantize(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, epsilon: float, bits: int, symmetric: bool, clip: float
) -> Tokens:
    m, k = x.shape
    out = _tokens(m, k)
    weight = None if weight is None else weight.contiguous()
    rows = (x.contiguous(), _DTYPES[x.dtype], m, k, residual, weight, epsilon)
    call("dfq_rmsnorm_quantize", *rows, bits, int(symmetric), clip, *out)
    return out


def silu_mul_hadamard_quantize(
    gate: Tensor, up: Tensor, base: Tensor | None, block: int, bits: int, symmetric: bool, clip: float
) -> Tokens:
    m, k = gate.shape
    out = _tokens(m, k)
    rows = (gate.contiguous(), up.contiguous(), _DTYPES[gate.dtype], m, k)
    call("dfq_silu_mul_hadamard_quantize", *rows, *_turn(base, block), bits, int(symmetric), clip, *out)
    return out


CHECKS: dict[str, Callable[..., None]] = {
    "hadamard_quantize": check_hadamard_quantize,
    "rmsnorm_quantize": check_rmsnorm_quantize,
    "silu_mul_hadamard_quantize": check_silu_mul_hadamard_quantize,
}
REFERENCES: dict[str, Callable[..., Any]] = {name: getattr(ref_fused, name) for name in SCHEMAS}
SHAPES: dict[str, Callable[..., Any]] = {name: lambda x, *args: ops.token_shapes(x) for name in SCHEMAS}
KERNELS: dict[str, Callable[..., Any]] = {
    "hadamard_quantize": hadamard_quantize,
    "rmsnorm_quantize": rmsnorm_quantize,
    "silu_mul_hadamard_quantize": silu_mul_hadamard_quantize,
}

ops.define(SCHEMAS, CHECKS, REFERENCES, SHAPES)
