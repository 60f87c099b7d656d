"""Device functions that several kernels share: rounding as torch does, steps and zero points (ref.py: `_range`,
`_zero_point`), products on tensor cores."""

from __future__ import annotations

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
# 1.5 * 2^23: adding and subtracting it rounds float32 below 2^22 to the nearest integer, ties to even
MAGIC = tl.constexpr(12582912.0)
LIMIT = tl.constexpr(1048576.0)  # beyond every code and zero point, where rounding by MAGIC is still exact
HALF_MAX = tl.constexpr(65504.0)  # the largest finite float16


@triton.jit
def rint(x):
    """float32 -> nearest integer, ties to even, values beyond LIMIT clamped to it."""
    x = tl.minimum(tl.maximum(x, -LIMIT), LIMIT)
    return (x + MAGIC) - MAGIC


@triton.jit
def steps(low, high, HALF: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Clipped ends of rows (low <= 0 <= high) -> quantization step."""
    if SYMMETRIC:
        step = tl.div_rn(tl.maximum(high, -low), tl.zeros_like(high) + (HALF - 1))
    else:
        step = tl.div_rn(high - low, tl.zeros_like(high) + (2 * HALF - 1))
    return step


@triton.jit
def zero_point(low, step, TOP: tl.constexpr):
    return rint(tl.minimum(tl.div_rn(-low, step), TOP))


# whether this process runs Triton's interpreter, whose tl.dot multiplies bfloat16 as the integers it keeps them in
INTERPRETED = tl.constexpr(not isinstance(rint, triton.JITFunction))


@triton.jit
def dot(a, b, acc):
    """acc plus a @ b: 16-bit operands, float32 sums."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc)
