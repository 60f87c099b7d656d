"""`dfq bench kernels`: every operator at every shape, checked, beside its peers and the machine's roofline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

import dfrot_kernels
from dfrot.bench.clock import Call, race
from dfrot.bench.kernels.case import Case, ProblemShape
from dfrot.bench.kernels.cases.table import BUILDERS, UNUSED_SIZES
from dfrot.bench.kernels.roofline import Roofline, fastest_read_probe, measure, ring_bytes
from dfrot.bench.machine import machine
from dfrot.bench.settings import KernelBenchSettings
from dfrot.errors import InputError, UnsupportedError
from dfrot.progress import Progress, silent

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336))  # N, K of Llama-3-8B
ROWS = (1, 4, 8, 512)
READ = "read"  # the bandwidth probe, timed in turns with the contenders
MULTIPLE = 16  # of N and K


def available_ops() -> list[str]:
    """Operators that the bench can feed and this installation has."""
    return [name for name in BUILDERS if hasattr(torch.ops.dfq, name)]


def selected_ops(ops: Sequence[str]) -> list[str]:
    """`ops`, or all available ones when empty.

    Raises InputError for a name that the bench does not know, UnsupportedError for one that is not installed."""
    for name in ops:
        if name not in BUILDERS:
            known = ", ".join(BUILDERS)
            raise InputError(f"`ops={name}`: the bench does not know it; known: {known}", field="ops")
        if not hasattr(torch.ops.dfq, name):
            message = f"`ops={name}`: this installation has no such operator; see dfq doctor"
            raise UnsupportedError(message, field="ops")
    return list(ops) or available_ops()


def bench_kernels(
    ops: Sequence[str] = (),
    shapes: Sequence[tuple[int, int]] = KernelBenchSettings.shapes,
    rows: Sequence[int] = KernelBenchSettings.rows,
    *,
    group: int = KernelBenchSettings.group,
    context: int = KernelBenchSettings.context,
    repeats: int = KernelBenchSettings.repeats,
    with_peers: bool = KernelBenchSettings.with_peers,
    cached: bool = KernelBenchSettings.cached,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Time operators at every shape and number of rows; JSON.

    Each measurement is checked first: an operator that is off its reference has `error` and no times. Contenders take
    turns; times are medians with their spread. `roofline_percent` is the least time that bandwidth and arithmetic
    allow, over the measured time, with the bandwidth probed in the same turns.

    Args:
        ops: names; empty means all that there are.
        shapes: (N, K) of weights.
        rows: numbers of activation rows.
        group: columns per weight scale; 0: one scale per output channel.
        context: positions in the cache, for attention.
        repeats: samples per contender.
        with_peers: time torch's kernels too.
        cached: two operands of each kind, which caches may hold. Otherwise operands rotate, so that they come from
            memory; products with many rows reuse their weights anyway.
        seed: of the random operands.
    """
    names = selected_ops(ops)
    _check_shapes(shapes, group)
    roofline = measure(repeats)
    memory = ring_bytes(roofline.cache)
    cover = 0 if cached else memory
    probe = fastest_read_probe(memory, repeats)
    jobs = list(_jobs(names, shapes, rows, group, context))
    results = []
    for done, (name, shape) in enumerate(jobs):
        progress(name, done, len(jobs))
        case = BUILDERS[name](shape, torch.Generator().manual_seed(seed), cover)
        results.append(_measure_case(case, roofline, probe, repeats, with_peers))
    return {
        "results": results,
        "roofline": roofline.to_dict(),
        "cached": cached,
        "repeats": repeats,
        "seed": seed,
        "machine": machine(),
    }


def _check_shapes(shapes: Sequence[tuple[int, int]], group: int) -> None:
    for n, k in shapes:
        if n < MULTIPLE or k < MULTIPLE or n % MULTIPLE or k % MULTIPLE:
            message = f"`shapes={n}x{k}`: multiples of {MULTIPLE} are needed"
            raise InputError(message, field="shapes", limit=MULTIPLE)
        if group < 0 or (group and k % group):
            message = f"`group={group}`: does not divide the {k} columns of shape {n}x{k}"
            raise InputError(message, field="group", limit=k)


def _jobs(
    names: Sequence[str], shapes: Sequence[tuple[int, int]], rows: Sequence[int], group: int, context: int
) -> Iterator[tuple[str, ProblemShape]]:
    """Every operator at every shape, once where shapes differ only in sizes that it does not have."""
    yielded = set()
    for name in names:
        for n, k in shapes:
            for count in rows:
                shape = ProblemShape(n, k, count, group, context=context)
                key = (name, replace(shape, **dict.fromkeys(UNUSED_SIZES.get(name, ()), 0)))
                if key not in yielded:
                    yielded.add(key)
                    yield name, shape


def _measure_case(
    case: Case, roofline: Roofline, probe: tuple[Call, int], repeats: int, with_peers: bool
) -> dict[str, Any]:
    """Check, then time. The result of one case as JSON."""
    report: dict[str, Any] = {"op": case.op, "shape": case.sizes, "implementation": dfrot_kernels.which(case.op)[0]}
    report |= {"error": case.gate(), "limit": case.limit}
    if not report["error"] <= case.limit:
        return {**report, "passed": False}
    peers = case.peers if with_peers else {}
    times = race({READ: [probe[0]], case.op: case.calls, **peers}, repeats)
    own = times[case.op]
    bandwidth = probe[1] / times[READ].median
    least = roofline.seconds(case.nbytes, case.operations, case.kind, bandwidth)
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
