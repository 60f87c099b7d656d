"""Outputs of chosen decoder layers, recorded while the model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class AuxOutputs:
    """Records the outputs [B, S, d] of some layers. aux_layers: counted from 1; may be empty."""

    def __init__(self, layers: Sequence[nn.Module], aux_layers: Sequence[int]) -> None:
        self.layers, self.aux_layers = layers, aux_layers
        self._outputs: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[AuxOutputs]:
        """Record the forward pass inside."""
        handles = []
        for number in self.aux_layers:

            def record(_: nn.Module, __: Any, output: Any, number: int = number) -> None:
                self._outputs[number] = output[0] if isinstance(output, tuple) else output

            handles.append(self.layers[number - 1].register_forward_hook(record))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def features(self) -> Tensor | None:
        """The recorded outputs side by side, [B, S, layers * d]; None where no layers are recorded."""
        return torch.cat([self._outputs[number] for number in self.aux_layers], -1) if self.aux_layers else None
