"""Decode attention on the packed KV cache, beside PyTorch's on a bfloat16 cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dfrot.bench.clock import Call
from dfrot.bench.kernels.case import BFLOAT16, Case, ProblemShape, relative_error
from dfrot.bench.kernels.operands import ring_size
from dfrot.rotation.hadamard import hadamard_plan
from dfrot_kernels.ops import references as ref_kv

BITS = 4
MAX_ROWS = 64  # query rows; the op is made for decoding and verify passes
SCALE_AND_ZERO_BYTES = 3  # float16 scale and uint8 zero of a position and head


def kv_attention(shape: ProblemShape, generator: torch.Generator, cover: int) -> Case:
    """Query rows at the end of `context` positions, grouped heads, R3 on the queries."""
    rows, dim = min(shape.rows, MAX_ROWS, shape.context), shape.head_dim
    query = torch.empty(1, rows, shape.heads, dim).normal_(generator=generator).bfloat16()
    spec = hadamard_plan(dim)
    scaling = dim**-0.5
    options = (shape.context, dim, BITS, scaling, spec.base(), spec.block, *(None,) * 5)
    cache_bytes = shape.context * shape.kv_heads * (dim * BITS // 8 + SCALE_AND_ZERO_BYTES) * 2
    caches = [_random_cache(shape, generator) for _ in range(ring_size(cache_bytes, cover))]

    def run(cache: tuple[Tensor, ...]) -> Any:
        return torch.ops.dfq.kv_attention(query, *cache, *options)

    def gate() -> float:
        arguments: Any = (query.float(), *caches[0], *options)
        return relative_error(run(caches[0]), ref_kv.kv_attention(*arguments))

    bfloat16_cache_bytes = shape.context * shape.kv_heads * dim * 4
    peers = [_sdpa(shape, rows, query, generator) for _ in range(ring_size(bfloat16_cache_bytes, cover))]
    return Case(
        "kv_attention",
        {"context": shape.context, "heads": shape.heads, "kv_heads": shape.kv_heads, "rows": rows},
        gate,
        2 * BFLOAT16,
        [partial(run, cache) for cache in caches],
        cache_bytes,
        4.0 * rows * shape.context * shape.heads * dim,
        "int8",
        {"torch sdpa bf16": peers},
    )


def _random_cache(shape: ProblemShape, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Codes, scale and zero of random keys, then of random values, [context, 1, kv_heads, ...]."""
    lead = (shape.context, 1, shape.kv_heads)
    packed = (*lead, shape.head_dim * BITS // 8)
    parts: list[Tensor] = []
    for _ in range(2):
        parts.append(torch.randint(0, 256, packed, dtype=torch.uint8, generator=generator))
        parts.append(torch.empty(lead).uniform_(0.1, 0.2, generator=generator).half())
        parts.append(torch.randint(6, 10, lead, dtype=torch.uint8, generator=generator))
    return tuple(parts)


def _sdpa(shape: ProblemShape, rows: int, query: Tensor, generator: torch.Generator) -> Call:
    """PyTorch's attention of the same query on random bfloat16 keys and values."""
    size = (1, shape.kv_heads, shape.context, shape.head_dim)
    keys, values = (torch.empty(size).normal_(generator=generator).bfloat16() for _ in range(2))
    past = shape.context - rows
    mask = None if rows == 1 else torch.ones(rows, shape.context, dtype=torch.bool).tril(past)
    by_head = query.transpose(1, 2)
    return lambda: F.scaled_dot_product_attention(by_head, keys, values, attn_mask=mask, enable_gqa=True)
