"""Compensation: adding the activation error back into the weight that GPTQ rounds.

GPTQ rounds W so that it maps the quantized model's activations x' as W itself would. But W x' is not what the
layer is for: W x is, x being the unquantized model's activations. The weight that comes closest is the least
squares solution `W C (H + damping)^-1` with C = (2/n) sum x^T x', H = (2/n) sum x'^T x'; it shrinks directions in
which rounding noise of the activations drowns the signal and takes back errors of earlier layers. Matching the
unquantized activations is the idea of GPTAQ (arXiv 2504.02692). The full step overfits small calibrations;
`strength` takes a part of it: `W + strength W (C - H)(H + damping)^-1`.

x is what the 16-bit model computes: where the processor multiplies bfloat16 natively and the weights are stored in it,
its linears do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfrot.arch import Tap
from dfrot.calib.hessian import HessianSum, add_in_parts
from dfrot.calib.hidden_states import HiddenStates
from dfrot.calib.taps import inner_linear, observe_taps
from dfrot.processor import fast_bfloat16
from dfrot.quant.rounding.row_panels import WIDTH, divide_in_place, factor_in_place, panel_slices
from dfrot.ranks.single import Mail, Ranks, rounds_together
from dfrot.runtime.block_runner import BlockRunner

DAMPING = 0.01  # share of the mean diagonal; of this step alone, whatever GPTQ is asked to use


@dataclass(frozen=True)
class TapInput:
    """The input of a tap in one run of a block."""

    x: Tensor
    """float32 or bfloat16 [..., K]."""
    rows: Tensor | None
    """int64: which of the run's tokens these are; None: all."""

    def for_tokens_of(self, other: TapInput) -> Tensor:
        """[M, K]: these activations for the tokens of `other`, its own where a token went to another expert here."""
        own = self.x.reshape(-1, self.x.shape[-1])
        if self.rows is None or other.rows is None:
            return own
        combined = other.x.to(own.dtype, copy=True)
        combined[torch.isin(other.rows, self.rows)] = own[torch.isin(self.rows, other.rows)]  # both ascend
        return combined


TapInputs = dict[str, TapInput]
"""By tap name."""


class TapMoments:
    """Second moments at one tap: of the quantized model's rows x', and of the error x - x' with these."""

    def __init__(self, through_weights: bool = False) -> None:
        """through_weights: whether the error is that of the outputs (`through_weights`)."""
        self.hessian = HessianSum()
        self.through_weights = through_weights
        self.error: Tensor | None = None
        """float64 [K, K], sum (x - x')^T x'; or [N, K], W times that."""

    def add_error(self, product: Tensor) -> None:
        """Add the error's product float32 [K, K], or [N, K], of some rows."""
        if self.error is None:
            self.error = product.double()
            return
        add_in_parts(self.error, product)

    def compensated(self, weights: Sequence[Tensor], hessian: Tensor, strength: float) -> list[Tensor]:
        """The weights float32 [N, K] that are rounded in place of `weights`; hessian: float32 [K, K]. The error's
        products are used up."""
        mean = float(hessian.diagonal().double().mean())
        if self.error is None or mean <= 0:
            return list(weights)  # both models feed the same here, or nothing
        panels = [hessian[rows, : rows.stop].double() for rows in panel_slices(len(hessian))]
        for panel in panels:
            panel.diagonal(panel.shape[1] - len(panel)).add_(DAMPING * mean)
        if not factor_in_place(panels):
            return list(weights)  # NaN or Inf, which the algorithm reports
        missing, self.error = self.error.mul_(2 * strength / self.hessian.count), None
        if self.through_weights:
            steps = torch.split(divide_in_place(missing, panels), [len(weight) for weight in weights])
            panels.clear()  # gives their memory back
            return [weight + step.float() for weight, step in zip(weights, steps)]
        # (H + damping) is symmetric: missing (H + damping)^-1 is the transpose of a solution
        if sum(map(len, weights)) < len(hessian):
            narrow = missing.float()
            del missing  # so wide that every copy counts
            return [weight + divide_in_place((weight @ narrow).double(), panels).float() for weight in weights]
        step = divide_in_place(missing, panels).float()
        return [weight + weight @ step for weight in weights]


def through_weights(rows: int, columns: int) -> bool:
    """Whether the products of the error of an input with so many columns are multiplied by its weights, chunk by
    chunk, `((x - x') W^T)^T x'`: [N, K] in place of [K, K], and fewer operations. Not where K is small: nothing is
    to be saved there."""
    return columns > WIDTH and 2 * rows <= columns


def error_size(rows: int, columns: int) -> int:
    """Values of the error's product for a tap of this shape."""
    return columns * (rows if through_weights(rows, columns) else columns)


def moment_bytes(rows: int, columns: int) -> int:
    """Of the moments of a tap of this shape, float64: its Hessian's upper block triangle and the error's product."""
    return 9 * columns**2 // 2 + 8 * error_size(rows, columns)


HESSIAN, ERROR, ROWS = "hessian", "error", "rows"
HESSIAN_SENT = 2.25  # bytes per K^2 that a chunk sends: the upper block triangle of a product, float32


class SharedMoments:
    """The moments of some taps over chunks of samples that ranks share. Each tap belongs to a rank, to which the
    chunks' products go; they are added in the order of the chunks."""

    def __init__(
        self,
        ranks: Ranks,
        owners: Mapping[str, int],
        weights: Mapping[str, Sequence[Tensor]],
        width: int | None = None,
    ) -> None:
        """owners: the rank of every tap by its name. weights: float32 [N_i, K] of the taps, as they will be given to
        `TapMoments.compensated`. width: K of a single tap without weights, whose error nobody adds."""
        self.owners = owners
        shapes = {name: (sum(map(len, parts)), parts[0].shape[1]) for name, parts in weights.items()}
        self._weights = {name: parts for name, parts in weights.items() if through_weights(*shapes[name])}
        own = [name for name, owner in owners.items() if owner == ranks.rank]
        self._moments = {name: TapMoments(name in self._weights) for name in own}
        nbytes = HESSIAN_SENT * (width or 0) ** 2
        nbytes += sum(HESSIAN_SENT * shape[1] ** 2 + 4 * error_size(*shape) for shape in shapes.values())
        self._mail = Mail(ranks, self._receive, rounds_together(nbytes))

    def add(self, tap: str, quantized: TapInput, exact: TapInput | None) -> None:
        """Add the same tokens of both models, of this rank's chunk. exact: None without compensation, and for an expert
        that only the quantized model sent tokens to."""
        owner = self.owners[tap]
        rows = quantized.x.reshape(-1, quantized.x.shape[-1])
        for begin, product in HessianSum.products(rows):
            self._mail.send(owner, (tap, HESSIAN, begin, product))
        self._mail.send(owner, (tap, ROWS, len(rows), None))
        if exact is not None:
            error = exact.for_tokens_of(quantized) - rows
            if tap in self._weights:
                error = torch.cat([error @ weight.T for weight in self._weights[tap]], 1)
            self._mail.send(owner, (tap, ERROR, 0, error.T @ rows))

    def _receive(self, message: tuple[str, str, int, Tensor | None]) -> None:
        tap, kind, number, product = message
        moments = self._moments[tap]
        if product is None:
            moments.hessian.count += number
        elif kind == HESSIAN:
            moments.hessian.add_product(number, product)
        else:
            moments.add_error(product)

    def end_round(self) -> None:
        """All ranks have added their chunks of a round."""
        self._mail.deliver()

    def take(self, tap: str) -> TapMoments | None:
        """The moments of a tap, behind the last round; None on the ranks that it does not belong to. All ranks must
        call this."""
        self._mail.finish()
        self._weights.pop(tap, None)
        return self._moments.pop(tap, None)


@dataclass(frozen=True)
class ExactRun:
    """The unquantized model beside the quantized one, for one block."""

    source: HiddenStates
    """Its hidden states before the block."""
    target: HiddenStates
    """Its hidden states behind the block, to be written."""
    strength: float
    """How much of the compensation's step to take, 0 to 1."""

    @staticmethod
    def block(runner: BlockRunner, layer: int) -> nn.Module:
        """The unquantized block, which `run` can run several times."""
        block = runner.block(layer)
        for tap in runner.arch.taps():
            for linear in tap.linears:
                _multiply_in_bfloat16(inner_linear(block, linear.name))
        return block

    def run(
        self, runner: BlockRunner, block: nn.Module, taps: Sequence[Tap], chunks: Sequence[slice]
    ) -> list[TapInputs]:
        """Run the unquantized block on some samples after others; returns the inputs of `taps` for each chunk."""
        inputs: list[TapInputs] = []
        with observe_taps(block, taps, lambda tap, x, rows: inputs[-1].update({tap.name: TapInput(x, rows)})):
            for chunk in chunks:
                inputs.append({})
                self.target.write(chunk.start, runner.run(block, self.source.read(chunk.start, chunk.stop)))
        return inputs


def _multiply_in_bfloat16(linear: nn.Linear) -> None:
    """Let a linear round its input and output to bfloat16, where its weight lies in that format and the processor
    multiplies in it. Hooks that are attached later get the rounded input."""
    half = linear.weight.data.bfloat16()
    if fast_bfloat16() and torch.equal(half.float(), linear.weight.data):
        linear.weight.data = half
        if linear.bias is not None:
            linear.bias.data = linear.bias.data.bfloat16()
        linear.register_forward_pre_hook(lambda _, args: (args[0].bfloat16(),))
        linear.register_forward_hook(lambda _, args, out: out.float())
