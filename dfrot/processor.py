"""Properties of the processor that decide how something is computed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PROBE_SIZE = 64  # smaller products never leave MKL
PROBE_ERROR = 2.0**-18  # of float32 products; bfloat16 operands would be off by 2^-9


def fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively (AVX512-BF16 or AMX); else emulated, slower than float32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in names)


@contextmanager
def onednn_products() -> Iterator[None]:
    """float32 matrix products by oneDNN in place of MKL, which uses half of the vectors of an AMD processor: 2.3 times
    as fast on a Zen 5. Usable as a decorator.

    torch has one door to oneDNN: the permission to multiply in bfloat16. Where oneDNN makes use of it (AMX), where
    torch has no such door (before 2.9) and where the caller has set a precision, nothing is changed. Sums are float32,
    in another order than MKL's. The setting is the process's."""
    matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(matmul, "fp32_precision", None)
    if before != "none" or not _onednn_is_exact():
        yield
        return
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@functools.cache
def _onednn_is_exact() -> bool:
    """Whether oneDNN, permitted to multiply in bfloat16, multiplies float32 all the same."""
    matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)
    x = torch.randn(PROBE_SIZE, PROBE_SIZE, generator=torch.Generator().manual_seed(0))
    exact = x.double() @ x.double()
    matmul.fp32_precision = "bf16"
    try:
        return float((x @ x - exact).norm() / exact.norm()) < PROBE_ERROR
    finally:
        matmul.fp32_precision = "none"
