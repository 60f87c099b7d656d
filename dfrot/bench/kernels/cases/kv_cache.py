"""The packed cache, for the bench: decode attention beside PyTorch's on a bfloat16 cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dfrot.bench.clock import Call
from dfrot.bench.kernels.case import BFLOAT16, Case, ProblemShape, error
from dfrot.bench.kernels.cases.products import BUILDERS, IGNORES
from dfrot.bench.kernels.operands import ring
from dfrot.rotation.hadamard import hadamard_plan
from dfrot_kernels.ops import references as ref_kv

BITS, MOST_ROWS = 4, 64


def _cache(shape: ProblemShape, draw: torch.Generator) -> tuple[Tensor, ...]:
    """Codes, scale and zero of random keys and values, [context, 1, kv_heads, ...]."""
    lead = (shape.context, 1, shape.kv_heads)
    parts: list[Tensor] = []
    for _ in range(2):
        parts.append(torch.randint(0, 256, (*lead, shape.head_dim * BITS // 8), dtype=torch.uint8, generator=draw))
        parts.append(torch.empty(lead).uniform_(0.1, 0.2, generator=draw).half())
        parts.append(torch.randint(6, 10, lead, dtype=torch.uint8, generator=draw))
    return tuple(parts)


def kv_attention(shape: ProblemShape, draw: torch.Generator, cover: int) -> Case:
    """Query rows at the end of `context` positions, grouped heads, R3 on the queries."""
    rows, dim = min(shape.rows, MOST_ROWS, shape.context), shape.head_dim
    query = torch.empty(1, rows, shape.heads, dim).normal_(generator=draw).bfloat16()
    spec = hadamard_plan(dim)
    scaling = dim**-0.5
    where = (shape.context, dim, BITS, scaling, spec.base(), spec.block, *(None,) * 5)
    per_cache = shape.context * shape.kv_heads * (dim * BITS // 8 + 3) * 2
    stores = [_cache(shape, draw) for _ in range(ring(per_cache, cover))]

    def run(store: tuple[Tensor, ...]) -> Any:
        return torch.ops.dfq.kv_attention(query, *store, *where)

    def gate() -> float:
        arguments: Any = (query.float(), *stores[0], *where)
        return error(run(stores[0]), ref_kv.kv_attention(*arguments))

    wide = shape.context * shape.kv_heads * dim * 4
    peers = [_sdpa(shape, rows, query, draw) for _ in range(ring(wide, cover))]
    sizes = {"context": shape.context, "heads": shape.heads, "kv_heads": shape.kv_heads, "rows": rows}
    ours = [lambda store=store: run(store) for store in stores]
    work = 4.0 * rows * shape.context * shape.heads * dim
    rest = {"torch sdpa bf16": peers}
    return Case("kv_attention", sizes, gate, 2 * BFLOAT16, ours, per_cache, work, "int8", rest)


def _sdpa(shape: ProblemShape, rows: int, query: Tensor, draw: torch.Generator) -> Call:
    size = (1, shape.kv_heads, shape.context, shape.head_dim)
    keys, values = (torch.empty(size).normal_(generator=draw).bfloat16() for _ in range(2))
    past = shape.context - rows
    mask = None if rows == 1 else torch.ones(rows, shape.context, dtype=torch.bool).tril(past)
    turned = query.transpose(1, 2)
    return lambda: F.scaled_dot_product_attention(turned, keys, values, attn_mask=mask, enable_gqa=True)


BUILDERS["kv_attention"] = kv_attention
IGNORES["kv_attention"] = ("n", "k", "group")
