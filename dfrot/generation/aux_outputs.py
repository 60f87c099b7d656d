"""Outputs of chosen decoder layers, recorded while the model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class AuxOutputs:
    """Records the outputs [B, S, d] of some layers: by hooks where the modules compute, else from the native decoder.

    aux_layers: counted from 1; may be empty. native: the model's NativeDecoder, or None."""

    def __init__(self, layers: Sequence[nn.Module], aux_layers: Sequence[int], native: Any = None) -> None:
        self.layers, self.aux_layers, self.native = layers, tuple(aux_layers), native
        self._outputs: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[AuxOutputs]:
        """Record the forward passes inside."""
        if not self.aux_layers:
            yield self
            return
        handles = []
        for number in self.aux_layers:

            def record(_: nn.Module, __: Any, output: Any, number: int = number) -> None:
                self._outputs[number] = output[0] if isinstance(output, tuple) else output

            handles.append(self.layers[number - 1].register_forward_hook(record))
        try:
            if self.native is not None:
                self.native.record(self.aux_layers, len(handles))
            yield self
        finally:
            if self.native is not None:
                self._outputs.update(zip(self.aux_layers, self.native.states or ()))
                self.native.record((), 0)
            for handle in handles:
                handle.remove()

    def features(self) -> Tensor | None:
        """The outputs of the last pass side by side, [B, S, layers * d]; None where no layers are recorded."""
        if not self.aux_layers:
            return None
        states = None if self.native is None else self.native.states
        return torch.cat(states or [self._outputs[number] for number in self.aux_layers], -1)
