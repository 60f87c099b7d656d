"""Whether passes over chunks of samples wait at every input until it is quantized, or are repeated for it.

Both end in the same bytes. Waiting takes about half the time, and memory for what is computed and not yet used."""

from __future__ import annotations

from dfrot.arch.bound import BoundArch
from dfrot.free_memory import free_memory

LEAST = 2.0
"""GB that may always wait."""


def allowed(memory: float | None, processes: int = 1) -> float:
    """GB that may wait in each of the processes on this machine. memory: as asked for; None: half of what is free now,
    shared between the processes, and at least LEAST."""
    return memory if memory is not None else max(LEAST, free_memory() / 2e9 / processes)


def passes_wait(arch: BoundArch, tokens: int, memory: float) -> bool:
    """Whether the passes over so many tokens wait. memory: GB of activations that may."""
    return arch.spec.experts is None and waiting_bytes(arch, tokens) <= memory * 1e9


def waiting_bytes(arch: BoundArch, tokens: int) -> int:
    """Activations that wait at a tap, decided by shapes only: of the quantized model at most the residual stream, the
    input and what attention or MLP hold, of the unquantized one the inputs of all taps; float32."""
    sizes = arch.sizes
    quantized = 3 * sizes["hidden"] + max(sizes["q"] + 2 * sizes["kv"], 2 * sizes["intermediate"])
    return 4 * tokens * (quantized + sum(sizes[tap.linears[0].cols] for tap in arch.taps()))
