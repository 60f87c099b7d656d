"""Schemes, integer grids, quantization algorithms and the modules that run the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from dfrot.errors import UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

    from dfrot.quant.rounding.grid import Quantized
    from dfrot.quant.rounding.options import AlgorithmOptions
    from dfrot.quant.scheme import QuantScheme
    from dfrot.ranks.single import Ranks

    Quantize = Callable[[Sequence[Tensor], Tensor | None, QuantScheme, AlgorithmOptions, Ranks, int], list[Quantized]]


@dataclass(frozen=True)
class Algorithm:
    """An algorithm that quantizes weights."""

    name: str
    module: str
    """The module that defines `quantize_together`; imported on use, so that looking an algorithm up needs no torch."""
    needs_hessian: bool
    """Whether it needs a calibration."""

    def load(self) -> Quantize:
        """Its `quantize_together`: weights float32 [N_i, K] that share inputs, their Hessian [K, K], ranks that share
        the work and the one that has these values -> results on all of them."""
        return import_module(self.module).quantize_together  # type: ignore[no-any-return]


ALGORITHMS = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("gptq", "dfrot.quant.rounding.gptq", True),
        Algorithm("rtn", "dfrot.quant.rounding.rtn", False),
    )
}


def algorithm(name: str) -> Algorithm:
    """Look up an algorithm. Raises UnsupportedError naming the known ones."""
    if name not in ALGORITHMS:
        raise UnsupportedError(
            f"`algorithm` {name!r} is unknown; use one of {', '.join(ALGORITHMS)}", field="algorithm"
        )
    return ALGORITHMS[name]
