"""Verification to the last bit: a row of a block must come out as if it were computed alone.

Float products may sum in another order when there are more rows, and with 4-bit activations one different last bit
becomes a different code a layer later, a different token some tokens later. So every kind of product is asked, once
per number of rows, whether its rows depend on how many there are; those that do are run row by row while guesses
are verified. Integer products and bfloat16 ones usually do not; float32 ones usually do. Attention is always run
row by row over the keys that a row sees (dfrot/hf/interpose.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

TRIALS = 2


class RowExact:
    """Finds and mends products that depend on the number of rows, in the modules below `roots`."""

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        self.modules: dict[tuple[Any, ...], list[nn.Module]] = {}
        for root in roots:
            for module in root.modules():
                if isinstance(getattr(module, "in_features", None), int) and not any(module.children()):
                    self.modules.setdefault(_kind(module), []).append(module)
        self._dependent: dict[int, list[nn.Module]] = {}

    def dependent(self, count: int) -> list[nn.Module]:
        """Modules whose rows change in a block of `count` rows; measured once per count."""
        if count not in self._dependent:
            kinds = [same for same in self.modules.values() if _changes(same[0], count)]
            self._dependent[count] = [module for same in kinds for module in same]
        return self._dependent[count]

    @contextlib.contextmanager
    def rows(self, count: int) -> Iterator[None]:
        """While inside, blocks of `count` rows come out row-exact."""
        mended = self.dependent(count) if count > 1 else []
        for module in mended:
            module.forward = _one_by_one(module.forward)
        try:
            yield
        finally:
            for module in mended:
                del module.forward


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
def _changes(module: nn.Module, count: int) -> bool:
    size = int(module.in_features)  # type: ignore[arg-type]
    source = torch.Generator().manual_seed(count)
    device = next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
    for dtype in _input_dtypes(module):
        for _ in range(TRIALS):
            x = torch.randn(1, count, size, generator=source).to(device, dtype)
            if not torch.equal(module(x), torch.cat([module(row) for row in _rows(x)], 1)):
                return True
    return False


def _one_by_one(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def split(x: Tensor) -> Tensor:
        return torch.cat([forward(row) for row in _rows(x)], 1)

    return split


def _rows(x: Tensor) -> list[Tensor]:
    """x [1, n, d] as n of [1, 1, d], with the strides of a tensor that never had more rows: those of a slice send
    torch's product another way, which copies the weight."""
    return [x[0, row][None, None] for row in range(x.shape[1])]
