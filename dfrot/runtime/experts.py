"""The experts of a mixture as linears of their own, in place of transformers' two merged tensors per layer.

Only experts that some token was sent to are computed, one after another, each on its own tokens: every linear then is
an ordinary one, which may be packed, rotated, quantized or watched like any other. The router stays transformers' own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch
from dfrot.quant.linear import forward_shared_input
from dfrot.quant.sinks import Sinks


class Expert(nn.Module):
    """One gated MLP; its linears have the names that the checkpoint gives them. roles: gate, up, down."""

    def __init__(self, roles: tuple[str, str, str], shapes: dict[str, tuple[int, int]], act: Any, dtype: Any) -> None:
        super().__init__()
        self.roles, self.act = roles, act
        for name, (rows, cols) in shapes.items():
            self.add_module(name, nn.Linear(cols, rows, bias=False, device="meta", dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (self._modules[name] for name in self.roles)
        assert gate is not None
        assert up is not None
        assert down is not None
        gated, plain = forward_shared_input(gate, up, x)
        return down(self.act(gated) * plain)  # type: ignore[no-any-return]


class Experts(nn.Module):
    """All experts of a layer; called as transformers' sparse blocks call theirs.

    rows: int64, which of the call's tokens the running expert computes; None between experts. sinks: positions that
    stay exact, as indices of the call's tokens."""

    def __init__(self, arch: BoundArch, act: Any, dtype: torch.dtype) -> None:
        super().__init__()
        mixture = arch.spec.experts
        assert mixture is not None
        gate, up = (one.name for one in mixture.linears if one.writes == "mlp")
        (down,) = (one.name for one in mixture.linears if one.reads == "mlp")
        shapes = {one.name: arch.shape(one) for one in mixture.linears}
        for expert in range(arch.sizes["experts"]):
            self.add_module(str(expert), Expert((gate, up, down), shapes, act, dtype))
        self.rows: Tensor | None = None
        self.sinks: Sinks | None = None

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """hidden [T, d], index int64 and weights [T, k]: which experts each token goes to -> their weighted sum [T, d],
        summed in float32, in the order of the experts."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        out = torch.zeros(hidden.shape, dtype=wide, device=hidden.device)
        if len(hidden) == 1:  # decoding: nothing to sort
            with self._running(index.new_zeros(1)):
                for expert, place in sorted(zip(index[0].tolist(), range(index.shape[1]))):
                    out += self._expert(expert)(hidden).to(wide) * weights[0, place].to(wide)
            return out.to(hidden.dtype)
        chosen = index.flatten()
        order = torch.argsort(chosen, stable=True)  # grouped by expert, tokens in order
        counts = torch.bincount(chosen, minlength=len(self._modules)).tolist()
        for expert, places in enumerate(torch.split(order, counts)):
            if not len(places):
                continue
            rows = places // index.shape[1]
            with self._running(rows):
                part = self._expert(expert)(hidden[rows])
            out.index_add_(0, rows, part.to(wide) * weights.flatten()[places, None].to(wide))
        return out.to(hidden.dtype)

    def _expert(self, number: int) -> Expert:
        return self._modules[str(number)]  # type: ignore[return-value]

    @contextmanager
    def _running(self, rows: Tensor) -> Iterator[None]:
        self.rows = rows
        try:
            if self.sinks is None:
                yield
            else:
                with self.sinks.among(rows):
                    yield
        finally:
            self.rows = None


def install(model: nn.Module, arch: BoundArch, dtype: torch.dtype) -> None:
    """Exchange the experts of every layer, before any weight is loaded."""
    mixture = arch.spec.experts
    if mixture is None:
        return
    for layer in range(arch.n_layers):
        name = arch.module(arch.full(layer, mixture.container))
        merged: Any = model.get_submodule(name)
        model.set_submodule(name, Experts(arch, merged.act_fn, dtype))


def experts_of(module: nn.Module) -> Experts | None:
    """The experts below a block, if it is a mixture."""
    return next((one for one in module.modules() if isinstance(one, Experts)), None)


@contextmanager
def recorded_choices(block: nn.Module, arch: BoundArch) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While active, every run of a mixture's router appends (scores float [T, E], chosen experts int64 [T, k])."""
    found: list[tuple[Tensor, Tensor]] = []

    def after(module: nn.Module, args: Any, output: Any) -> None:
        scores, _, index = output
        found.append((scores.detach(), index.detach()))

    routers = [block.get_submodule(arch.module(one.name)) for one in arch.spec.routers]
    handles = [router.register_forward_hook(after) for router in routers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
