"""R1 refined for what its errors cost: the error of the outputs of the linears that read a rotated input.

DFRot weighs rows (arXiv 2412.00648): the squared error of a massive token counts more than that of a common one. Two
things keep that from reaching perplexity. Every channel of a row counts alike, while the linears behind it amplify
some directions far more than others; and a Procrustes step holds the rounded rows fixed, which lie next to the rows
themselves, so that it hardly turns. Here the weight of an error e is that of its consequence, |W e|^2 as a share of
|W x|^2, and R1 follows the gradient, which passes through the range of the grid (rounding itself passes gradients
straight through, arXiv 1308.3432). R1 = R0 (I + A/2)^-1 (I - A/2) with A skew-symmetric (Cayley; SpinQuant, arXiv
2405.16406, trains one against the loss of the whole model). No block is run: a step costs some products of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfrot.progress import Progress, silent
from dfrot.ranks.single import SINGLE, Mail, Ranks
from dfrot.rotation.refinement.polar import orthogonalise
from dfrot.rotation.refinement.token_quantizer import TokenQuantizer
from dfrot.straight_through import straight_through

TAPS, ROWS = 6, 384  # norms of a step, and rows of each
RATE = 0.03  # of Adam at its peak, times d^-1/2: an angle
BETAS = (0.9, 0.98)
EVERY = 25  # steps between measurements on held-out rows
HELD_OUT, HELD_OUT_ROWS = 0.25, 1024  # the share of a norm's rows that is held out; the most that are measured
SKETCH = 1024  # width from which |W e|^2 is estimated from as many random combinations of W's rows


@dataclass(frozen=True)
class NormOutputs:
    """The output of one norm, and what reads it."""

    rows: Tensor
    """bfloat16 [n, d]: the norm's outputs, without its gain."""
    readers: Tensor
    """float32 [k, d]: |readers e|^2 is the squared error of all linears together; the gain is in it."""


@dataclass(frozen=True)
class OutputRefinement:
    """A rotation refined for outputs."""

    matrix: Tensor
    """float64 [d, d], orthogonal."""
    curve: list[tuple[int, float]]
    """(steps, error of held-out rows as a share of the outputs), the start first."""
    best: int
    """Steps behind `matrix`: 0 where nothing was gained."""


def reader_factor(weights: Sequence[Tensor], gain: Tensor, seed: int) -> Tensor:
    """float32 [k, d] whose product with e has the squared norm of all W (gain e): exact up to width SKETCH, else from
    SKETCH random combinations of rows, in expectation. weights: [rows, d] each; gain [d]."""
    stacked = torch.cat([weight.float() for weight in weights]) * gain.float()
    if len(stacked) <= SKETCH:
        return stacked
    if stacked.shape[1] <= SKETCH:
        values, vectors = torch.linalg.eigh(stacked.double().T @ stacked.double())
        root: Tensor = values.clamp_min(0).sqrt()[:, None] * vectors.T
        return root.float()
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (SKETCH, len(stacked)), generator=generator).float().mul_(2).sub_(1)
    sketch: Tensor = signs @ stacked * SKETCH**-0.5
    return sketch


def refine_outputs(
    taps: Sequence[NormOutputs],
    start: Tensor,
    signs: Callable[[Tensor], Tensor],
    grid: TokenQuantizer,
    steps: int,
    seed: int,
    progress: Progress = silent,
    ranks: Ranks = SINGLE,
) -> OutputRefinement:
    """Refine `start` float64 [d, d], orthogonal.

    signs: R1 -> +-1 [taps, d], the gains behind R1 (see `dfrot/rotation/align.py`). The best state on held-out rows is
    returned. The result depends on the number of threads. ranks: processes that share the norms of a step, each calling
    this with the same norms; the first one turns R1 and knows `start` and `signs`, all get the result."""
    problem = _Problem(taps, start.float(), signs, grid, ranks)
    skew = torch.zeros_like(problem.start, requires_grad=True)
    optimizer = torch.optim.Adam([skew], betas=BETAS)
    generator = torch.Generator().manual_seed(seed)
    peak = RATE * start.shape[0] ** -0.5
    curve = [(0, problem.held_out_error(skew))]
    best = (curve[0][1], 0, skew.detach().clone())
    for step in range(steps):
        progress("refine", step, steps)
        optimizer.param_groups[0]["lr"] = peak * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        problem.backward(skew, generator)
        optimizer.step()
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            curve.append((step + 1, problem.held_out_error(skew)))
            if curve[-1][1] < best[0]:
                best = (curve[-1][1], step + 1, skew.detach().clone())
    progress("refine", steps, steps)
    matrix = orthogonalise(start @ cayley(best[2].double())) if best[1] and ranks.first else start
    matrix, points, steps_taken = ranks.broadcast([matrix, curve, best[1]])
    return OutputRefinement(matrix, [(step, error) for step, error in points], steps_taken)


def cayley(parameter: Tensor) -> Tensor:
    """Orthogonal [d, d] from the entries of parameter [d, d] above its diagonal."""
    upper = parameter.triu(1)
    half = (upper - upper.T) / 2
    eye = torch.eye(len(half), dtype=half.dtype)
    turn: Tensor = torch.linalg.solve(eye + half, eye - half)
    return turn


def rounded(y: Tensor, grid: TokenQuantizer) -> Tensor:
    """Q(y) of rows [n, d] as `grid` rounds them, with gradients: through the range, and straight through rounding."""
    scale, least, largest = grid.range_of(y)
    values: Tensor = straight_through(y / scale, torch.round).clamp(least, largest) * scale
    return values


class _Problem:
    def __init__(
        self,
        taps: Sequence[NormOutputs],
        start: Tensor,
        signs: Callable[[Tensor], Tensor],
        grid: TokenQuantizer,
        ranks: Ranks,
    ) -> None:
        self.taps, self.start, self.signs, self.grid, self.ranks = taps, start, signs, grid, ranks

    def rotation(self, skew: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """R1 [d, d] with its graph, on the first rank; R1 and the signs of the gains behind it, on every rank."""
        if not self.ranks.first:
            matrix, signs = self.ranks.broadcast(None)
            return matrix, matrix, signs
        matrix = self.start @ cayley(skew)
        values = matrix.detach()
        signs = self.signs(values)
        self.ranks.broadcast([values, signs])
        return matrix, values, signs

    def error(self, tap: NormOutputs, rows: Tensor, matrix: Tensor, sign: Tensor) -> Tensor:
        """Mean over rows [n, d] of the squared error of the outputs, as a share of them."""
        rows = rows.float()
        turned = rows @ matrix * sign
        error = (rounded(turned, self.grid) - turned) * sign @ matrix.T
        output = (rows @ tap.readers.T).square().sum(1).clamp_min(1e-30)
        return ((error @ tap.readers.T).square().sum(1) / output).mean()

    def backward(self, skew: Tensor, generator: torch.Generator) -> None:
        """Add the gradient of one step's rows to `skew`."""
        matrix, values, signs = self.rotation(skew)
        chosen = torch.randperm(len(self.taps), generator=generator)[:TAPS].tolist()
        drawn = []
        for index in chosen:
            count = len(self.taps[index].rows) - self._held_out(self.taps[index])
            drawn.append(torch.randperm(count, generator=generator)[:ROWS])
        total: Tensor | None = None

        def add(gradient: Tensor) -> None:
            nonlocal total
            total = gradient if total is None else total.add_(gradient)

        mail = Mail(self.ranks, add)
        for number in self.ranks.rounds(len(chosen)):
            if number is not None:
                tap, leaf = self.taps[chosen[number]], values.detach().requires_grad_()
                error = self.error(tap, tap.rows[drawn[number]], leaf, signs[chosen[number]])
                mail.send(0, torch.autograd.grad(error / len(chosen), leaf)[0])
            mail.deliver()
        if self.ranks.first:
            matrix.backward(total)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def held_out_error(self, skew: Tensor) -> float:
        """Mean over norms of the error of their held-out rows."""
        _, matrix, signs = self.rotation(skew)

        def measure(index: int) -> float:
            tap = self.taps[index]
            rows = tap.rows[len(tap.rows) - self._held_out(tap) :][:HELD_OUT_ROWS]
            return float(self.error(tap, rows, matrix, signs[index]))

        return self.ranks.mean(len(self.taps), measure)

    @staticmethod
    def _held_out(tap: NormOutputs) -> int:
        return max(1, int(HELD_OUT * len(tap.rows)))
