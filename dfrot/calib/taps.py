"""Observing the taps of a block while it runs, and how many samples may run together.

A tap is observed behind everything that happens to its input (the online R4, activation quantizers that were
attached before), that is, exactly where the weight is multiplied.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from dfrot.arch import BoundArch, Tap
from dfrot.runtime.block_runner import OnlineHadamard
from dfrot.runtime.experts import find_experts

CHUNK_BYTES = 192 << 20  # activations of one block that are alive at once; larger ones leave the caches


def inner_linear(block: nn.Module, name: str) -> nn.Linear:
    """The linear called `name` (relative to the block), without the online rotation in front of it."""
    module = block.get_submodule(name)
    return module.linear if isinstance(module, OnlineHadamard) else module  # type: ignore[return-value]


def samples_per_chunk(arch: BoundArch, seqlen: int) -> int:
    """How many samples of `seqlen` tokens may go through a block together.

    Decided by shapes only, so that results repeat: per token float32 activations of about 6 hidden, 2 attention and
    4 MLP widths."""
    sizes = arch.sizes
    per_token = 4 * (6 * sizes["hidden"] + 2 * (sizes["q"] + 2 * sizes["kv"]) + 4 * sizes["intermediate"])
    return max(1, CHUNK_BYTES // (per_token * seqlen))


@contextmanager
def observe_taps(
    block: nn.Module, taps: Sequence[Tap], callback: Callable[[Tap, Tensor, Tensor | None], None]
) -> Iterator[None]:
    """Call `callback(tap, x, rows)` once per run of the block, before the first linear of each tap multiplies x.

    x [..., K]: the tap's input. rows int64: which of the run's tokens, counted over samples and positions, an expert
    was sent; None: x [B, S, K] holds all tokens. There is no call for an expert without tokens. Runs in several threads
    are told apart."""
    called: set[tuple[int, str]] = set()
    mixture = find_experts(block)

    def make_hook(tap: Tap) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            key = threading.get_ident(), tap.name
            if key not in called:
                called.add(key)
                callback(tap, args[0], mixture.rows if mixture is not None else None)

        return hook

    def forget(*_: Any) -> None:
        called.difference_update([key for key in called if key[0] == threading.get_ident()])

    with ExitStack() as stack:
        for tap in taps:
            for linear in tap.linears:
                handle = inner_linear(block, linear.name).register_forward_pre_hook(make_hook(tap))
                stack.callback(handle.remove)
        reset = block.register_forward_hook(forget, always_call=True)
        stack.callback(reset.remove)
        yield
