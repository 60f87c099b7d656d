"""Device functions that several kernels share: rounding as torch does, steps and zero points (row_range and
zero_point of ops/quantize/reference.py), products on tensor cores."""

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
    """Lower end of rows (at most 0) and step -> zero point, a whole float of at most TOP."""
    return rint(tl.minimum(tl.div_rn(-low, step), TOP))


@triton.jit
def token_scale(low, high, bad, clip, HALF: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Ends of rows (low <= 0 <= high) and how many of their values are not finite -> what `quantize_per_token` stores:
    float32 scale (NaN for bad rows) and zero point, and whether a row is good. Any shape, scalars too."""
    low, high = low * clip, high * clip
    step = steps(low, high, HALF, SYMMETRIC)
    good = (bad == 0) & (step < INF)
    scale = tl.where(step == 0, 1.0, step)
    zero = scale * 0.0
    if not SYMMETRIC:
        zero = zero_point(low, scale, 2 * HALF - 1) - HALF
    return tl.where(good, scale, float("nan")), tl.where(good, zero, 0.0), good


@triton.jit
def token_codes(values, scale, zero, good, HALF: tl.constexpr):
    """float32 values -> codes, as float32; scale, zero and good broadcast."""
    q = rint(tl.div_rn(values, scale + tl.zeros_like(values))) + zero
    return tl.where(good, tl.minimum(tl.maximum(q, -HALF), HALF - 1), 0.0)


@triton.jit
def not_finite(values):
    """1 where NaN or infinite."""
    return (~(tl.abs(values) < INF)).to(tl.int32)


@triton.jit
def quantized(y, clip, HALF: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Rows float32 [R, K] (0 where they are padded) -> codes [R, K], scale [R], zero [R], all float32."""
    low, high = tl.minimum(tl.min(y, 1), 0.0), tl.maximum(tl.max(y, 1), 0.0)
    scale, zero, good = token_scale(low, high, tl.sum(not_finite(y), 1), clip, HALF, SYMMETRIC)
    return token_codes(y, scale[:, None], zero[:, None], good[:, None], HALF), scale, zero


# whether this process runs Triton's interpreter, whose tl.dot multiplies bfloat16 as the integers it keeps them in
INTERPRETED = tl.constexpr(not isinstance(rint, triton.JITFunction))


@triton.jit
def dot(a, b, acc):
    """acc plus a @ b: 16-bit operands, float32 sums."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc)
