"""What one block does to one window of tokens, captured while it runs: states, inputs of linears, heads, attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch, Linear
from dfrot.calib.observe import linear_of
from dfrot.runtime.attention_listener import listen


@dataclass
class BlockCapture:
    """One window through block `layer`. tokens int64 [S]; states: name -> residual stream [S, hidden] before the block
    and after each linear that writes to it; taps: tap name -> its input [S, K]; heads: q/k/v linear -> its output
    [S, N]; query [heads, S, D], key, value [kv heads, S, D] behind RoPE, mask as attention got it, scale."""

    layer: int
    window: int
    tokens: Tensor
    before: Tensor
    states: dict[str, Tensor] = field(default_factory=dict)
    taps: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    mask: Tensor | None = None
    scale: float = 1.0


def residual_writers(arch: BoundArch) -> tuple[Linear, ...]:
    """The linears that write to the residual stream, in order of computation."""
    return tuple(linear for linear in arch.spec.linears if linear.writes == "residual")


@contextmanager
def capture_block(block: nn.Module, arch: BoundArch, view: BlockCapture) -> Iterator[None]:
    """Fill `view` while the block runs once on a batch of one. Taps are seen before any activation quantizer."""
    state = {"at": view.before}

    def tap_hook(name: str) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            view.taps.setdefault(name, args[0][0].detach())

        return before

    def write_hook(name: str) -> Any:
        def after(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            state["at"] = state["at"] + out[0].detach()
            view.states[name] = state["at"]

        return after

    def head_hook(name: str) -> Any:
        def after(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            view.heads[name] = out[0].detach()

        return after

    def heard(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> None:
        view.query, view.key, view.value = query[0].detach(), key[0].detach(), value[0].detach()
        view.mask = None if mask is None else mask[0]
        view.scale = scale

    with ExitStack() as stack:
        for tap in arch.taps():
            module = linear_of(block, tap.linears[0].name)
            stack.callback(module.register_forward_pre_hook(tap_hook(tap.name), prepend=True).remove)
        for linear in arch.spec.linears:
            hook = {"residual": write_hook, "qk": head_hook, "v": head_hook}.get(linear.writes)
            if hook is not None:
                handle = linear_of(block, linear.name).register_forward_hook(hook(linear.name))
                stack.callback(handle.remove)
        for name in {one.name.rpartition(".")[0] for one in arch.spec.linears if one.writes == "qk"}:
            listen(block.get_submodule(name), heard)
        yield


@torch.no_grad()
def run_and_capture(runner: Any, block: nn.Module, arch: BoundArch, view: BlockCapture, cache: Any) -> Tensor:
    """Run the block on the view's window [S, hidden]; returns the hidden state behind it."""
    with capture_block(block, arch, view):
        out: Tensor = runner.run(block, view.before[None], cache)[0]
    return out
