"""Batch invariance: a row of a batch must have the bits that it would have alone.

Floating-point products may sum in another order when there are more rows. With 4-bit activations one different last
bit becomes a different code a layer later and a different token some tokens later. So every kind of product is
tested, once per number of rows, for whether its rows depend on how many there are; those that do are computed row by
row in verify passes. Integer and bfloat16 products usually do not depend on it; float32 products usually do. Attention
is always computed row by row over the keys that a row sees (dfrot/runtime/attention_hooks.py).

In a mixture of experts an expert gets any number of a batch's rows, so its linears are tested for every number up to
the size of the batch. Modules that cannot be tested in isolation (a router with its softmax, transformers' experts in
merged tensors) are always computed row by row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.compat.forward import wrapped_forwards
from dfrot.runtime.experts import Experts

TRIALS = 2  # random inputs per test

Kind = tuple[Any, ...]
"""What decides how a module multiplies; modules of one kind are tested once. Its first entry: whether the module
belongs to an expert."""


class BatchInvariance:
    """Finds the modules below `roots` whose products depend on the number of rows, and computes those row by row."""

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        self.modules: dict[Kind, list[nn.Module]] = {}
        self.untestable: list[nn.Module] = []
        for root in roots:
            experts = [module for module in root.modules() if isinstance(module, Experts)]
            in_experts = {id(part) for expert in experts for part in expert.modules()}
            for module in root.modules():
                if isinstance(getattr(module, "in_features", None), int) and not any(module.children()):
                    self.modules.setdefault((id(module) in in_experts, *_kind(module)), []).append(module)
                elif _multiplies(module):
                    self.untestable.append(module)
        self._tested: dict[Kind, bool] = {}

    def dependent(self, count: int) -> list[nn.Module]:
        """Modules whose rows change in a batch of `count` rows. Tested once per kind and count."""
        dependent = list(self.untestable)
        for kind, modules in self.modules.items():
            in_expert = kind[0]
            counts = range(2, count + 1) if in_expert else (count,)
            if any(self._changes(kind, modules[0], n) for n in counts):
                dependent += modules
        return dependent

    def _changes(self, kind: Kind, module: nn.Module, count: int) -> bool:
        key = (*kind, count)
        if key not in self._tested:
            self._tested[key] = _changes(module, count, 2 if kind[0] else 3)
        return self._tested[key]

    @contextlib.contextmanager
    def rows(self, count: int) -> Iterator[None]:
        """Inside, a batch of `count` rows is batch invariant."""
        with wrapped_forwards(self.dependent(count) if count > 1 else [], _row_by_row):
            yield


def _multiplies(module: nn.Module) -> bool:
    """Whether a module without `in_features` has a matrix of its own and is no embedding."""
    return any(p.dim() > 1 for p in module.parameters(recurse=False)) and not isinstance(module, nn.Embedding)


def _kind(module: nn.Module) -> Kind:
    weight = getattr(module, "weight", None)
    dtype = weight.dtype if isinstance(weight, Tensor) else None
    plan = getattr(module, "plan", None)  # of a quantized linear: sizes, bits, groups, rotation; all but its name
    detail = repr([(key, value) for key, value in sorted(vars(plan).items()) if key != "name"]) if plan else ""
    return type(module), module.in_features, module.out_features, dtype, getattr(module, "bias", None) is None, detail


def _input_dtypes(module: nn.Module) -> list[torch.dtype]:
    """Dtypes of inputs to test: that of a floating-point weight; for a packed weight, both that models use."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point():
        return [weight.dtype]
    return [torch.bfloat16, torch.float32]


@torch.no_grad()
def _changes(module: nn.Module, count: int, dims: int) -> bool:
    """Whether rows of an input [1, count, K] (dims 3) or [count, K] (dims 2) differ from the same rows alone."""
    size = int(module.in_features)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(count)
    device = next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
    for dtype in _input_dtypes(module):
        for _ in range(TRIALS):
            x = torch.randn(count, size, generator=generator).to(device, dtype)
            x = x if dims == 2 else x[None]
            if not torch.equal(module(x), _join([module(row) for row in _rows(x)])):
                return True
    return False


def _row_by_row(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` of tensors [1, n, ...] or [n, ...], called with one row after the other; it may return several."""

    def split(*inputs: Tensor) -> Any:
        outputs = [forward(*row) for row in zip(*map(_rows, inputs))]
        if isinstance(outputs[0], Tensor):
            return _join(outputs)
        return tuple(_join(parts) for parts in zip(*outputs))

    return split


def _rows(x: Tensor) -> list[Tensor]:
    """x [1, n, d] as n tensors [1, 1, d], or [n, d] as n tensors [1, d], with the strides of a tensor that never had
    more rows: the strides of a slice select another implementation of the product, which copies the weight."""
    return [row[None] for row in x] if x.dim() == 2 else [row[None, None] for row in x[0]]


def _join(rows: Sequence[Tensor]) -> Tensor:
    """The inverse of `_rows`."""
    return torch.cat(list(rows), rows[0].dim() - 2)
