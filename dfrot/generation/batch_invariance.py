"""Verification to the last bit: a row of a block must come out as if it were computed alone.

Float products may sum in another order when there are more rows, and with 4-bit activations one different last bit
becomes a different code a layer later, a different token some tokens later. So every kind of product is asked, once
per number of rows, whether its rows depend on how many there are; those that do are run row by row while guesses
are verified. Integer products and bfloat16 ones usually do not; float32 ones usually do. Attention is always run
row by row over the keys that a row sees (dfrot/runtime/attention_hooks.py).

In a mixture of experts a block's rows meet in an expert, however many of them were sent to it: a linear of an expert is
asked for every number up to the block's. Modules whose products cannot be asked, a router with its softmax or
transformers' experts in merged tensors, are always run row by row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.compat.forward import wrapped_forwards
from dfrot.runtime.experts import Experts

TRIALS = 2


class BatchInvariance:
    """Finds and mends products that depend on the number of rows, in the modules below `roots`."""

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        self.modules: dict[tuple[Any, ...], list[nn.Module]] = {}
        self.others: list[nn.Module] = []  # products that cannot be asked
        for root in roots:
            inside = {id(part) for one in root.modules() if isinstance(one, Experts) for part in one.modules()}
            for module in root.modules():
                if isinstance(getattr(module, "in_features", None), int) and not any(module.children()):
                    self.modules.setdefault((id(module) in inside, *_kind(module)), []).append(module)
                elif _multiplies(module):
                    self.others.append(module)
        self._asked: dict[tuple[Any, ...], bool] = {}

    def dependent(self, count: int) -> list[nn.Module]:
        """Modules whose rows change in a block of `count` rows; measured once per count."""
        found = list(self.others)
        for kind, same in self.modules.items():
            if any(self._changes(kind, same[0], n) for n in (range(2, count + 1) if kind[0] else (count,))):
                found += same
        return found

    def _changes(self, kind: tuple[Any, ...], module: nn.Module, count: int) -> bool:
        key = (*kind, count)
        if key not in self._asked:
            self._asked[key] = _changes(module, count, 2 if kind[0] else 3)
        return self._asked[key]

    @contextlib.contextmanager
    def rows(self, count: int) -> Iterator[None]:
        """While inside, blocks of `count` rows come out row-exact."""
        with wrapped_forwards(self.dependent(count) if count > 1 else [], _one_by_one):
            yield


def _multiplies(module: nn.Module) -> bool:
    """Whether a module that says nothing of its inputs has a matrix of its own, and is no table."""
    return any(p.dim() > 1 for p in module.parameters(recurse=False)) and not isinstance(module, nn.Embedding)


def _kind(module: nn.Module) -> tuple[Any, ...]:
    weight = getattr(module, "weight", None)
    dtype = weight.dtype if isinstance(weight, Tensor) else None
    plan = getattr(module, "plan", None)  # of a quantized linear: widths, bits, groups, rotation (without its name)
    detail = repr([(key, value) for key, value in sorted(vars(plan).items()) if key != "name"]) if plan else ""
    return type(module), module.in_features, module.out_features, dtype, getattr(module, "bias", None) is None, detail


def _input_dtypes(module: nn.Module) -> list[torch.dtype]:
    """What may flow into the module: its float weight's dtype; into a packed one, either of two."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point():
        return [weight.dtype]
    return [torch.bfloat16, torch.float32]


@torch.no_grad()
def _changes(module: nn.Module, count: int, dims: int) -> bool:
    """Whether rows of an input [1, count, K], or of two dimensions [count, K], come out otherwise than alone."""
    size = int(module.in_features)  # type: ignore[arg-type]
    source = torch.Generator().manual_seed(count)
    device = next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
    for dtype in _input_dtypes(module):
        for _ in range(TRIALS):
            x = torch.randn(count, size, generator=source).to(device, dtype)
            x = x if dims == 2 else x[None]
            if not torch.equal(module(x), _joined([module(row) for row in _rows(x)])):
                return True
    return False


def _one_by_one(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` of tensors [1, n, ...] or [n, ...], called with one row after the other; it may return several."""

    def split(*inputs: Tensor) -> Any:
        found = [forward(*row) for row in zip(*map(_rows, inputs))]
        if isinstance(found[0], Tensor):
            return _joined(found)
        return tuple(_joined(parts) for parts in zip(*found))

    return split


def _rows(x: Tensor) -> list[Tensor]:
    """x [1, n, d] as n of [1, 1, d], or [n, d] as n of [1, d], with the strides of a tensor that never had more rows:
    those of a slice send torch's product another way, which copies the weight."""
    return [row[None] for row in x] if x.dim() == 2 else [row[None, None] for row in x[0]]


def _joined(rows: Sequence[Tensor]) -> Tensor:
    """What `_rows` took apart."""
    return torch.cat(list(rows), rows[0].dim() - 2)
