"""The experts of a mixture as linears of their own, in place of transformers' two merged tensors per layer.

Only experts that some token was sent to are computed, one after another, each on its own tokens: every linear is then
an ordinary one, which may be packed, rotated, quantized or observed like any other. The router stays transformers'.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch
from dfrot.arch.space import Space
from dfrot.quant.modules.linear import forward_shared_input
from dfrot.quant.sinks import Sinks


class Expert(nn.Module):
    """One gated MLP.

    Args:
        names: its gate, up and down linear, as the checkpoint calls them.
        shapes: name -> [rows, cols].
        activation: applied to the gate's output.
        dtype: of the weights, which are created on the meta device.
    """

    def __init__(
        self, names: tuple[str, str, str], shapes: dict[str, tuple[int, int]], activation: Any, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.names, self.activation = names, activation
        for name, (rows, cols) in shapes.items():
            self.add_module(name, nn.Linear(cols, rows, bias=False, device="meta", dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        gate, up, down = (self._modules[name] for name in self.names)
        assert gate is not None
        assert up is not None
        assert down is not None
        gate_out, up_out = forward_shared_input(gate, up, x)
        return down(self.activation(gate_out) * up_out)  # type: ignore[no-any-return]


class Experts(nn.Module):
    """All experts of a layer; called as transformers' sparse blocks call theirs.

    rows: int64, which of the call's tokens the running expert computes; None between experts. sinks: positions that
    stay exact, as indices of the call's tokens."""

    def __init__(self, arch: BoundArch, activation: Any, dtype: torch.dtype) -> None:
        super().__init__()
        mixture = arch.spec.experts
        assert mixture is not None
        gate, up = (linear.name for linear in mixture.linears if linear.writes == Space.MLP)
        (down,) = (linear.name for linear in mixture.linears if linear.reads == Space.MLP)
        shapes = {linear.name: arch.shape(linear) for linear in mixture.linears}
        for expert in range(arch.n_experts):
            self.add_module(str(expert), Expert((gate, up, down), shapes, activation, dtype))
        self.rows: Tensor | None = None
        self.sinks: Sinks | None = None

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """hidden [T, d], index int64 and weights [T, k]: the experts that each token goes to -> their weighted sum
        [T, d], summed in float32, in the order of the experts."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        out = torch.zeros(hidden.shape, dtype=wide, device=hidden.device)
        if len(hidden) == 1:  # decoding: nothing to sort
            with self._running(index.new_zeros(1)):
                for expert, slot in sorted(zip(index[0].tolist(), range(index.shape[1]))):
                    out += self._expert(expert)(hidden).to(wide) * weights[0, slot].to(wide)
            return out.to(hidden.dtype)
        flat = index.flatten()
        order = torch.argsort(flat, stable=True)  # grouped by expert, tokens in order
        counts = torch.bincount(flat, minlength=len(self._modules)).tolist()
        for expert, slots in enumerate(torch.split(order, counts)):
            if not len(slots):
                continue
            rows = slots // index.shape[1]
            with self._running(rows):
                expert_out = self._expert(expert)(hidden[rows])
            out.index_add_(0, rows, expert_out.to(wide) * weights.flatten()[slots, None].to(wide))
        return out.to(hidden.dtype)

    def _expert(self, number: int) -> Expert:
        return self._modules[str(number)]  # type: ignore[return-value]

    @contextmanager
    def _running(self, rows: Tensor) -> Iterator[None]:
        """While an expert computes these of the call's tokens, int64 [n]."""
        self.rows = rows
        try:
            if self.sinks is None:
                yield
            else:
                with self.sinks.among(rows):
                    yield
        finally:
            self.rows = None


def install_experts(model: nn.Module, arch: BoundArch, dtype: torch.dtype) -> None:
    """Replace transformers' merged experts of every layer, before any weight is loaded."""
    mixture = arch.spec.experts
    if mixture is None:
        return
    for layer in range(arch.n_layers):
        name = arch.module(arch.full(layer, mixture.container))
        merged: Any = model.get_submodule(name)
        model.set_submodule(name, Experts(arch, merged.act_fn, dtype))


def find_experts(module: nn.Module) -> Experts | None:
    """The experts below a block, if it is a mixture."""
    return next((child for child in module.modules() if isinstance(child, Experts)), None)


@contextmanager
def record_routing(block: nn.Module, arch: BoundArch) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While active, every run of a mixture's router appends (scores float [T, E], chosen experts int64 [T, k])."""
    records: list[tuple[Tensor, Tensor]] = []

    def after(module: nn.Module, args: Any, output: Any) -> None:
        scores, _, index = output
        records.append((scores.detach(), index.detach()))

    routers = [block.get_submodule(arch.module(router.name)) for router in arch.spec.routers]
    handles = [router.register_forward_hook(after) for router in routers]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()
