"""What rounding the input of linears costs the model, for every input at once.

Rounding an input x to Q(x) = x + e moves the predictions of the 16-bit model. To second order their divergence
KL(p || p') is e^T F e / 2 with the Fisher information F = E[g g^T], g the gradient of log p(y) by x for a token y drawn
from p itself. Errors of different tokens are taken as independent, so that one draw per position is enough:

    cost = mean over tokens of (g . e)^2 / 2,  in nats per predicted token.

Costs of several inputs add up as far as their errors are independent too. The measure is that of Fisher pruning (Theis
et al., arXiv 1801.05787, eq. 5) with the error of rounding in place of the value removed; FIT (arXiv 2210.08502) ranks
bits of weights and activations by it, through the trace of F and the power of e.

One block is in memory at a time: forward, its inputs go to files; backward, each block is run again from its file. The
head is read in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dfrot.arch import Tap
from dfrot.calib.hidden_states import HiddenStates
from dfrot.calib.taps import observe_taps
from dfrot.progress import Progress, silent
from dfrot.quant.activations import fake_quantize
from dfrot.quant.scheme import QuantScheme
from dfrot.runtime.block_runner import HEAD_ROWS, BlockRunner
from dfrot.runtime.softcap import softcap_of

TOKENS = 4096
"""Tokens on which costs are measured."""
STREAM = "costs-"
"""Names the files of hidden states."""
POSITIONS = 256  # whose logits are in memory at once

InputSchemes = Callable[[int, Tap], Sequence[QuantScheme]]
"""(layer, tap) -> the ways to round its input: bits, grid and clip ratio of activations."""
InputCosts = list[dict[str, list[float]]]
"""By layer, then by name of the tap: the cost of every way, in nats per token."""


def cost_windows(tokens: Tensor) -> Tensor:
    """As many of the first windows of tokens int64 [samples, seqlen] as hold `TOKENS`, at least one."""
    return tokens[: max(1, TOKENS // tokens.shape[1])]


@torch.enable_grad()
def input_costs(
    runner: BlockRunner,
    tokens: Tensor,
    folder: Path,
    schemes: InputSchemes,
    sink_tokens: int = 0,
    progress: Progress = silent,
) -> InputCosts:
    """The cost of rounding every input of the blocks.

    tokens: int64 [windows, seqlen]. folder: where files lie meanwhile. sink_tokens: leading positions that are not
    rounded. For models without experts."""
    layers = runner.arch.n_layers
    states = _forward(runner, tokens, folder, progress)
    generator = torch.Generator().manual_seed(0)
    gradients = [_score_gradient(runner, states[layers].read(n, n + 1)[0], generator) for n in range(len(tokens))]
    states[layers].remove()
    costs: InputCosts = []
    for layer in reversed(range(layers)):
        progress("costs", 2 * layers - 1 - layer, 2 * layers)
        ways = {tap.name: schemes(layer, tap) for tap in runner.arch.taps()}
        sums, gradients = _backward(runner, layer, states[layer], gradients, ways, sink_tokens)
        costs.append({name: [float(cost) / 2 / tokens.numel() for cost in values] for name, values in sums.items()})
        states[layer].remove()
    progress("costs", 2 * layers, 2 * layers)
    return costs[::-1]


@torch.no_grad()
def _forward(runner: BlockRunner, tokens: Tensor, folder: Path, progress: Progress) -> list[HiddenStates]:
    """The hidden states before every block and behind the last."""
    layers, shape = runner.arch.n_layers, (*tokens.shape, runner.arch.hidden)
    states = [HiddenStates(folder, layer, shape, STREAM) for layer in range(layers + 1)]
    for number, window in enumerate(tokens):
        states[0].write(number, runner.embed(window[None]))
    states[0].sync()
    for layer in range(layers):
        progress("costs", layer, 2 * layers)
        block = runner.block(layer)
        for number in range(len(tokens)):
            states[layer + 1].write(number, runner.run(block, states[layer].read(number, number + 1)))
        states[layer + 1].sync()
        del block
    return states


def _score_gradient(runner: BlockRunner, hidden: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient of the sum of log p(y) over all positions by hidden [S, d], behind the last block; y is drawn from
    p, at every position."""
    leaf = hidden.detach().requires_grad_()
    normed = runner.final_norm()(leaf)
    with torch.no_grad():
        parts = [_head_gradient(runner, part, generator) for part in torch.split(hidden, POSITIONS)]
    torch.autograd.backward(normed, torch.cat(parts))
    assert leaf.grad is not None
    return leaf.grad


def _head_gradient(runner: BlockRunner, hidden: Tensor, generator: torch.Generator) -> Tensor:
    """The same by the output of the final norm [n, d], for hidden [n, d] before it."""
    logits = runner.logits(hidden)
    probabilities = logits.softmax(-1)
    thresholds = torch.rand(len(hidden), 1, generator=generator)
    drawn = torch.searchsorted(probabilities.cumsum(-1), thresholds).clamp_(max=logits.shape[-1] - 1)
    score = probabilities.neg_().scatter_add_(-1, drawn, torch.ones(len(hidden), 1))
    cap = softcap_of(runner.config, runner.arch, "logits")
    if cap is not None:
        score *= 1 - (logits / cap).square()
    out = torch.zeros_like(hidden)
    for columns, rows in zip(torch.split(score, HEAD_ROWS, dim=-1), runner.head_rows(HEAD_ROWS)):
        out += columns @ rows.to(out.dtype)
    return out / runner.arch.scalar("logits")


def _backward(
    runner: BlockRunner,
    layer: int,
    states: HiddenStates,
    gradients: Sequence[Tensor],
    ways: dict[str, Sequence[QuantScheme]],
    sink_tokens: int,
) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """Sums of (g . e)^2 over all tokens for each tap and way, and the gradients [S, d] by the inputs of the block.

    states: its inputs. gradients: by its outputs, [S, d] of every window."""
    block = runner.block(layer)
    for parameter in block.parameters():
        parameter.data = parameter.data.clone()  # aligned, so that BLAS repeats itself
    sums = {name: [torch.zeros((), dtype=torch.float64) for _ in schemes] for name, schemes in ways.items()}
    inputs: dict[str, Tensor] = {}

    def keep(tap: Tap, x: Tensor, rows: Tensor | None) -> None:
        x.retain_grad()
        inputs[tap.name] = x

    behind: list[Tensor] = []
    with observe_taps(block, runner.arch.taps(), keep):
        for number, gradient in enumerate(gradients):
            hidden = states.read(number, number + 1).clone().requires_grad_()
            torch.autograd.backward(runner.differentiable(block, hidden), gradient[None])
            assert hidden.grad is not None
            behind.append(hidden.grad[0])
            for name, x in inputs.items():
                for total, scheme in zip(sums[name], ways[name]):
                    total += _squared_scores(x, scheme, sink_tokens)
            inputs.clear()
    return sums, behind


@torch.no_grad()
def _squared_scores(x: Tensor, scheme: QuantScheme, sink_tokens: int) -> Tensor:
    """The sum of (g . e)^2 over the tokens of x [1, S, K], which has a gradient; float64."""
    assert x.grad is not None
    error = fake_quantize(x, scheme.a_bits, scheme.a_sym, scheme.a_clip) - x
    products = (error * x.grad).sum(-1, dtype=torch.float64)
    return products[:, sink_tokens:].square().sum()
