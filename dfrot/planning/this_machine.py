"""How fast this machine does each kind of work: a few seconds of the very functions that the stages call.

Nothing is stored: the figures are part of the plan that is printed, so that a plan says what it was made from.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dfrot.checkpoint import read_header, read_tensor
from dfrot.planning.work import FACTOR, FIXED
from dfrot.processor import fast_bfloat16, onednn_products
from dfrot.quant.activations import TokenCodes
from dfrot.quant.rounding.clip import search
from dfrot.quant.rounding.gptq import factor, solve
from dfrot.quant.rounding.grid import fit
from dfrot.quant.rounding.options import AlgorithmOptions
from dfrot.quant.scheme import QuantScheme
from dfrot.tensor_file import save_tensors
from dfrot_kernels.layouts import PackedWeight
from dfrot_kernels.prepared import PreparedWeight

TOKENS, ROWS = 2048, 3072  # of the activations that are multiplied, and of the weights that are rounded
HEADS, HEAD = 8, 64  # of the attention over TOKENS
NARROWEST, WIDEST = 256, 2048  # columns of both: those of the model within these bounds
SECONDS = 0.25  # for which each kind is repeated
FILE_WEIGHTS = 1 << 24  # of the file that is written and read


def measure_rates(hidden: int = 1024) -> dict[str, float]:
    """Units per second by kind of work (`work.KINDS`), on the threads that torch uses, at a model's width."""
    width = min(max(hidden, NARROWEST), WIDEST)
    generator = torch.Generator().manual_seed(0)
    wide, x = torch.randn(width, width, generator=generator), torch.randn(TOKENS, width, generator=generator)
    flops = 2.0 * width**3
    rates = dict(FIXED)
    double = wide.double()
    rates["products64"] = _rate(lambda: double @ double, flops)
    rates["plain32"] = _rate(lambda: x @ wide, 2.0 * TOKENS * width**2)
    with onednn_products():
        rates["products32"] = _rate(lambda: x @ wide, 2.0 * TOKENS * width**2)
    query = torch.randn(1, HEADS, TOKENS, HEAD, generator=generator)
    scores = 2.0 * HEADS * HEAD * TOKENS**2  # two products, of which a causal mask leaves half
    attend = torch.nn.functional.scaled_dot_product_attention
    rates["plain_attention"] = _rate(lambda: attend(query, query, query, is_causal=True), scores)
    with onednn_products():
        rates["attention"] = _rate(lambda: attend(query, query, query, is_causal=True), scores)
    half, half_x = wide.bfloat16(), x.bfloat16()
    rates["products16"] = (
        _rate(lambda: half_x @ half, 2.0 * TOKENS * width**2) if fast_bfloat16() else rates["products32"]
    )
    hessian = (x.T @ x) * (2 / TOKENS)
    options, scheme = AlgorithmOptions(), QuantScheme()
    factored = factor(hessian, options)
    assert not isinstance(factored, str)
    rates["factor64"] = _rate(lambda: factor(hessian, options), FACTOR * width**3)
    tall = torch.randn(ROWS, width, generator=generator)
    grid = fit(tall, scheme.w_bits, scheme.w_sym)
    updates = ROWS * width**2 / rates["products32"]
    with onednn_products():
        seconds = 1 / _rate(lambda: solve(tall, grid, factored), 1.0)
    rates["columns"] = width * ROWS / max(seconds - updates, 0.2 * seconds)
    rates["search"] = _rate(lambda: search(tall, scheme.w_bits, scheme.w_sym), width * ROWS)
    rates["elements"] = _rate(lambda: torch.nn.functional.silu(x).mul_(x).add_(x), 3.0 * x.numel())
    codes = TokenCodes.of(x, scheme.a_bits, False, 1.0)
    rates["integers"] = _integers(
        grid.packed(grid.encode(tall)), codes, 2.0 * TOKENS * width * ROWS, rates["products32"]
    )
    return rates | _disk()


def _rate(work: Callable[[], object], amount: float) -> float:
    """Units per second of a piece of work of `amount` units: the fastest of its repetitions."""
    work()  # what is set up once
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return amount / best


def _integers(weight: PackedWeight, codes: TokenCodes, flops: float, otherwise: float) -> float:
    """FLOPs per second of the packed product; those of float32 where no kernel serves."""
    if not PreparedWeight.serves(weight):
        return otherwise
    packed = PreparedWeight.from_packed(weight)
    return _rate(
        lambda: packed.integer_linear(codes.codes, codes.scale, codes.zero, None, torch.float32),
        flops,
    )


def _disk() -> dict[str, float]:
    """Bytes per second of a file that is written and made durable and of the same file read back, and weights per
    second that are read, checked and made float32. Reading finds the file in the page cache, as a stage does that
    reads what the one before wrote."""
    weights = torch.ones(FILE_WEIGHTS, dtype=torch.bfloat16)
    nbytes = weights.nbytes
    with tempfile.TemporaryDirectory(prefix="dfq-plan-") as folder:
        file = Path(folder) / "weights.safetensors"
        begin = time.perf_counter()
        save_tensors(file, {"weights": weights})
        write = nbytes / (time.perf_counter() - begin)
        entry = read_header(file)["weights"]
        read = _rate(lambda: file.read_bytes(), nbytes)
        whole = 1 / _rate(lambda: read_tensor(entry).float(), 1.0)
    return {"write": write, "read": read, "load": FILE_WEIGHTS / max(whole - nbytes / read, 0.2 * whole)}
