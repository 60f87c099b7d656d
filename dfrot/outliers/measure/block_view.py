"""What one block computes for one window of tokens, captured while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch, Linear
from dfrot.calib.taps import inner_linear
from dfrot.runtime.attention_hooks import AttentionCall, observe_block_attention


@dataclass
class BlockCapture:
    """One window through one block."""

    layer: int
    """Index of the block."""
    window: int
    """Index of the window."""
    tokens: Tensor
    """Token ids of the window, int64 [S]."""
    before: Tensor
    """Residual stream before the block [S, hidden]."""
    states: dict[str, Tensor] = field(default_factory=dict)
    """Linear that writes to the residual stream -> the stream after it [S, hidden]."""
    taps: dict[str, Tensor] = field(default_factory=dict)
    """Tap -> its value [S, K], before any activation quantizer."""
    heads: dict[str, Tensor] = field(default_factory=dict)
    """Query, key or value linear -> its output [S, N]."""
    query: Tensor | None = None
    """Queries behind RoPE [heads, S, D]."""
    key: Tensor | None = None
    """Keys behind RoPE [kv heads, S, D]."""
    value: Tensor | None = None
    """Values [kv heads, S, D]."""
    mask: Tensor | None = None
    """The mask that attention was given, boolean or additive; None for causal."""
    scale: float = 1.0
    """Factor of the attention scores."""


def residual_writers(arch: BoundArch) -> tuple[Linear, ...]:
    """The linears that write to the residual stream, in order of computation."""
    return tuple(linear for linear in arch.spec.linears if linear.writes == "residual")


@contextmanager
def capture_block(block: nn.Module, arch: BoundArch, capture: BlockCapture) -> Iterator[None]:
    """Context in which one run of the block on a batch of one fills `capture`."""
    stream = {"now": capture.before}

    def tap_hook(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            capture.taps.setdefault(name, args[0][0].detach())

        return hook

    def write_hook(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            stream["now"] = stream["now"] + out[0].detach()
            capture.states[name] = stream["now"]

        return hook

    def head_hook(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            capture.heads[name] = out[0].detach()

        return hook

    def keep_attention(call: AttentionCall) -> None:
        capture.query, capture.key, capture.value = (x[0].detach() for x in (call.query, call.key, call.value))
        capture.mask = None if call.mask is None else call.mask[0]
        capture.scale = call.scale

    with ExitStack() as stack:
        for tap in arch.taps():
            module = inner_linear(block, tap.linears[0].name)
            stack.callback(module.register_forward_pre_hook(tap_hook(tap.name), prepend=True).remove)
        for linear in arch.spec.linears:
            make_hook = {"residual": write_hook, "qk": head_hook, "v": head_hook}.get(linear.writes)
            if make_hook is not None:
                handle = inner_linear(block, linear.name).register_forward_hook(make_hook(linear.name))
                stack.callback(handle.remove)
        stack.enter_context(observe_block_attention(block, keep_attention))
        yield


@torch.no_grad()
def run_and_capture(runner: Any, block: nn.Module, arch: BoundArch, capture: BlockCapture, cache: Any) -> Tensor:
    """Run the block on the stream `capture.before` [S, hidden] and fill `capture`; returns the stream after the block.

    runner: of the checkpoint; cache: what rounds keys and values, or None."""
    with capture_block(block, arch, capture):
        out: Tensor = runner.run(block, capture.before[None], cache)[0]
    return out
