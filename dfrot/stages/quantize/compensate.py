"""Compensation: adding the activation error back into the weight that GPTQ rounds.

GPTQ rounds W so that it maps the quantized model's activations x' as W itself would. But W x' is not what the
layer is for: W x is, x being the unquantized model's activations. The weight that comes closest is the least
squares solution `W C (H + damping)^-1` with C = (2/n) sum x^T x', H = (2/n) sum x'^T x'; it shrinks directions in
which rounding noise of the activations drowns the signal and takes back errors of earlier layers. Matching the
unquantized activations is the idea of GPTAQ (arXiv 2504.02692). The full step overfits small calibrations;
`strength` takes a part of it: `W + strength W (C - H)(H + damping)^-1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot.arch import Tap
from dfrot.calib.hessian import HessianSum
from dfrot.calib.hidden_states import HiddenStates
from dfrot.calib.taps import observe_taps
from dfrot.runtime.block_runner import BlockRunner

DAMPING = 0.01  # share of the mean diagonal; of this step alone, whatever GPTQ is asked to use


@dataclass(frozen=True)
class TapInput:
    """The input of a tap in one run of a block."""

    x: Tensor
    """float32 [..., K]."""
    rows: Tensor | None
    """int64: which of the run's tokens these are; None: all."""

    def for_tokens_of(self, other: TapInput) -> Tensor:
        """[M, K]: these activations for the tokens of `other`, its own where a token went to another expert here."""
        own = self.x.reshape(-1, self.x.shape[-1])
        if self.rows is None or other.rows is None:
            return own
        combined = other.x.clone()
        combined[torch.isin(other.rows, self.rows)] = own[torch.isin(self.rows, other.rows)]  # both ascend
        return combined


TapInputs = dict[str, TapInput]
"""By tap name."""


class TapMoments:
    """Second moments at one tap: of the quantized model's rows, and of these with the unquantized model's."""

    def __init__(self) -> None:
        self.hessian = HessianSum()
        self.cross: Tensor | None = None

    def add(self, quantized: TapInput, exact: TapInput | None, compensate: bool) -> None:
        """Add the same tokens of both models. An expert that only the quantized model sent tokens to has no `exact`."""
        rows = quantized.x.reshape(-1, quantized.x.shape[-1])
        self.hessian.add(rows)
        if compensate:
            product = (rows if exact is None else exact.for_tokens_of(quantized)).T @ rows
            self.cross = product.double() if self.cross is None else self.cross.add_(product)

    def compensated(self, weights: Sequence[Tensor], hessian: Tensor, strength: float) -> list[Tensor]:
        """The weights float32 [N, K] that are rounded in place of `weights`; hessian: float32 [K, K]."""
        assert self.cross is not None
        damped = hessian.double()
        missing = self.cross.mul(2 / self.hessian.count).sub_(damped)
        mean = float(damped.diagonal().mean())
        if mean <= 0:
            return list(weights)  # nothing is ever active here
        damped.diagonal().add_(DAMPING * mean)
        # (H + damping) is symmetric: missing (H + damping)^-1 is the transpose of this solution
        step = torch.linalg.solve(damped, missing.T).T.float().mul_(strength)
        return [weight + weight @ step for weight in weights]


@dataclass(frozen=True)
class ExactRun:
    """The unquantized model beside the quantized one, for one block."""

    source: HiddenStates
    """Its hidden states before the block."""
    target: HiddenStates
    """Its hidden states behind the block, to be written."""
    strength: float
    """How much of the compensation's step to take, 0 to 1."""

    def run(self, runner: BlockRunner, layer: int, taps: Sequence[Tap], chunks: Sequence[slice]) -> list[TapInputs]:
        """Run the unquantized block on some samples after others; returns the inputs of `taps` for each chunk."""
        inputs: list[TapInputs] = []
        block = runner.block(layer)
        with observe_taps(block, taps, lambda tap, x, rows: inputs[-1].update({tap.name: TapInput(x, rows)})):
            for chunk in chunks:
                inputs.append({})
                self.target.write(chunk.start, runner.run(block, self.source.read(chunk.start, chunk.stop)))
        return inputs
