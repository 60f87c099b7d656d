"""`dfq bench kernels`: every op at every shape, gated, beside its peers and the machine's roofline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

import dfrot_kernels
from dfrot.bench.clock import race
from dfrot.bench.kernels.case import Case, ProblemShape
from dfrot.bench.kernels.cases import (
    fused,  # noqa: F401  (they add to BUILDERS)
    kv_cache,  # noqa: F401  (they add to BUILDERS)
    prepared,  # noqa: F401  (they add to BUILDERS)
)
from dfrot.bench.kernels.cases.products import BUILDERS, IGNORES
from dfrot.bench.kernels.roofline import Roofline, measure, readers, ring_bytes
from dfrot.bench.machine import machine
from dfrot.errors import InputError, UnsupportedError
from dfrot.stage_folder import Progress, silent

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336))  # N, K of Llama-3-8B
ROWS = (1, 4, 8, 512)
READ = "read"  # the bandwidth probe that takes its turn with the contenders


def available() -> list[str]:
    """Ops that the bench can feed and this installation has."""
    return [name for name in BUILDERS if hasattr(torch.ops.dfq, name)]


def chosen(ops: Sequence[str]) -> list[str]:
    """`ops`, or all of them; raises for a name that the bench or this installation does not have."""
    for name in ops:
        if name not in BUILDERS:
            raise InputError(f"--ops {name}: the bench does not know it; known: {', '.join(BUILDERS)}")
        if not hasattr(torch.ops.dfq, name):
            raise UnsupportedError(f"--ops {name}: this installation has no such operator; see dfq doctor")
    return list(ops) or available()


def bench_kernels(
    ops: Sequence[str] = (),
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rows: Sequence[int] = ROWS,
    *,
    group: int = 0,
    context: int = 8192,
    repeats: int = 7,
    with_peers: bool = True,
    cached: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Time `ops` (default: all there are) at every (N, K) and number of rows, JSON.

    Each measurement passes its gate first: an op that is off its reference has `error` and no times. Contenders take
    turns; times are medians with their spread. `roofline_percent`: the least time that bandwidth and arithmetic
    allow, over the measured one, with the bandwidth probed in the same turns. Operands rotate, so that they come from
    memory (weights of products with many rows excepted, which are reused); cached: two of each, which caches may hold.
    """
    names = chosen(ops)
    for n, k in shapes:
        if n < 16 or k < 16 or n % 16 or k % 16:
            raise InputError(f"--shapes {n}x{k}: multiples of 16 are needed")
        if group < 0 or (group and k % group):
            raise InputError(f"--group {group}: does not divide the {k} columns of shape {n}x{k}")
    line = measure(repeats)
    cover = ring_bytes(line.cache)
    operands = 0 if cached else cover
    read, size = max(readers(cover).values(), key=lambda way: _speed(way, repeats))
    jobs = list(_jobs(names, shapes, rows, group, context))
    found = []
    for done, (name, shape) in enumerate(jobs):
        progress(name, done, len(jobs))
        draw = torch.Generator().manual_seed(seed)
        case = BUILDERS[name](shape, draw, operands)
        found.append(_measured(case, line, (read, size), repeats, with_peers))
    return {
        "results": found,
        "roofline": line.to_dict(),
        "cached": cached,
        "repeats": repeats,
        "seed": seed,
        "machine": machine(),
    }


def _speed(way: tuple[Any, int], repeats: int) -> float:
    return way[1] / race({READ: [way[0]]}, repeats)[READ].best


def _jobs(
    names: Sequence[str], shapes: Sequence[tuple[int, int]], rows: Sequence[int], group: int, context: int
) -> Iterator[tuple[str, ProblemShape]]:
    """Every op at every shape, the same sizes (of the dimensions it has) once."""
    seen = set()
    for name in names:
        for n, k in shapes:
            for count in rows:
                shape = ProblemShape(n, k, count, group, context=context)
                key = (name, replace(shape, **dict.fromkeys(IGNORES.get(name, ()), 0)))
                if key not in seen:
                    seen.add(key)
                    yield name, shape


def _measured(case: Case, line: Roofline, probe: tuple[Any, int], repeats: int, with_peers: bool) -> dict[str, Any]:
    """Gate, then times. The result of one case as JSON."""
    report: dict[str, Any] = {"op": case.op, "shape": case.shown, "implementation": dfrot_kernels.which(case.op)[0]}
    report |= {"error": case.gate(), "limit": case.limit}
    if not report["error"] <= case.limit:
        return {**report, "passed": False}
    peers = case.peers if with_peers else {}
    times = race({READ: [probe[0]], case.op: case.ours, **peers}, repeats)
    own = times[case.op]
    bandwidth = probe[1] / times[READ].median
    least = line.seconds(case.nbytes, case.operations, case.kind, bandwidth)
    return {
        **report,
        "passed": True,
        "seconds": own.to_dict(),
        "bytes": case.nbytes,
        "operations": case.operations,
        "kind": case.kind,
        "bytes_per_s": case.nbytes / own.median,
        "operations_per_s": case.operations / own.median,
        "read_bytes_per_s": bandwidth,
        "roofline_percent": 100 * least / own.median,
        "peers": {name: {"seconds": times[name].to_dict(), "ratio": times[name].median / own.median} for name in peers},
    }
