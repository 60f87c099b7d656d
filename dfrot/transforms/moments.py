"""What transforms need to know of a block's activations: moments, from one pass over calibration windows.

Tokens of one input differ in size, and each has a quantization scale of its own, so that the error of a token is a
share of its size. Moments of the inputs of o and down therefore count every token as if it had norm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch, Space, Tap
from dfrot.calib.taps import observe_taps
from dfrot.progress import Progress, silent
from dfrot.ranks.single import SINGLE, Mail, Ranks
from dfrot.runtime.attention_hooks import AttentionCall, observe_block_attention
from dfrot.runtime.block_runner import BlockRunner

TINY = 1e-30  # added to squared norms that are divided by


class VectorMoments:
    """Mean and second moment of vectors [heads, D] that arrive in chunks, float64."""

    def __init__(self, heads: int, width: int) -> None:
        self.weight = 0.0
        self._mean = torch.zeros(heads, width, dtype=torch.float64)
        self._square = torch.zeros(heads, width, width, dtype=torch.float64)

    @staticmethod
    def sums(rows: Tensor, weight: Tensor | None = None) -> list[Any]:
        """What a chunk adds. rows float32 [heads, M, D]; weight [heads, M] or [M] counts each of them, by default 1."""
        weighted = rows if weight is None else rows * weight.unsqueeze(-1)
        count = rows.shape[1] if weight is None else float(weight.sum(dtype=torch.float64)) / weight[..., 0].numel()
        return [weighted.sum(1, dtype=torch.float64), weighted.mT @ rows, count]

    def add_sums(self, mean: Tensor, square: Tensor, count: float) -> None:
        """Add what `sums` made of a chunk."""
        self._mean += mean
        self._square += square.double()
        self.weight += count

    def add(self, rows: Tensor, weight: Tensor | None = None) -> None:
        """Add a chunk; as `sums`."""
        self.add_sums(*self.sums(rows, weight))

    @property
    def mean(self) -> Tensor:
        """[heads, D]."""
        return self._mean / max(self.weight, TINY)

    def covariance(self, center: Tensor | None = None) -> Tensor:
        """Second moment around `center` [heads, D] (default: around 0), [heads, D, D]."""
        square = self._square / max(self.weight, TINY)
        if center is None:
            return square
        cross = center[:, :, None] * self.mean[:, None, :]
        return square - cross - cross.mT + center[:, :, None] * center[:, None, :]


class ChannelMoments:
    """Mean square and largest magnitude of the channels of one input, tokens of norm 1, float64 [K]."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.square = torch.zeros(width, dtype=torch.float64)
        self.peak = torch.zeros(width, dtype=torch.float64)

    @staticmethod
    def sums(x: Tensor) -> list[Any]:
        """What a chunk x float32 [..., K] adds."""
        rows = x.reshape(-1, x.shape[-1])
        rows = rows / (rows.square().sum(1, keepdim=True) + TINY).sqrt()
        return [rows.square().sum(0, dtype=torch.float64), rows.abs().amax(0), len(rows)]

    def add_sums(self, square: Tensor, peak: Tensor, count: int) -> None:
        """Add what `sums` made of a chunk."""
        self.square += square
        self.peak = torch.maximum(self.peak, peak.double())
        self.count += count

    def add(self, x: Tensor) -> None:
        """Add a chunk; as `sums`."""
        self.add_sums(*self.sums(x))


DOWN, VALUES, MIXED, QUERY, KEY, NORM = "down", "values", "mixed", "query", "key", "norm"


class BlockMoments:
    """The moments of one block, from sums over chunks that are added in the order in which they come."""

    def __init__(self, arch: BoundArch) -> None:
        self.arch = arch
        heads, width = arch.n_kv_heads, arch.head_dim
        self.down = [ChannelMoments(arch.intermediate) for _ in range(max(1, arch.n_experts))]
        """Input of the down projection, by expert (0 without a mixture)."""
        self.values = VectorMoments(heads, width)
        """Of every kv head."""
        self.mixed = VectorMoments(heads, width)
        """Attention's output, all query heads of a group together; tokens of norm 1 over all heads."""
        self.query = torch.zeros(heads, width, dtype=torch.float64)
        """Summed squares of the queries of a group behind RoPE."""
        self.key = torch.zeros(heads, width, dtype=torch.float64)
        """Summed squares of keys behind RoPE."""
        self.norms = [ChannelMoments(arch.hidden) for _ in arch.spec.norms]
        """Output of every norm, for the linears that read it."""

    def add(self, message: tuple[str, int, list[Any]]) -> None:
        """Add what `ChunkSums` sent of a chunk."""
        kind, number, sums = message
        if kind in (DOWN, NORM):
            (self.down if kind == DOWN else self.norms)[number].add_sums(*sums)
        elif kind in (VALUES, MIXED):
            (self.values if kind == VALUES else self.mixed).add_sums(*sums)
        else:
            total = self.query if kind == QUERY else self.key
            total += sums[0]


class ChunkSums:
    """What a chunk that runs through a block adds to its moments."""

    def __init__(self, arch: BoundArch, send: Callable[[tuple[str, int, list[Any]]], None]) -> None:
        """send: gets one message after the other, for `BlockMoments.add`."""
        self.arch, self.send = arch, send
        self.fed_by = {linear: number for number, norm in enumerate(arch.spec.norms) for linear in norm.feeds}

    def tap(self, tap: Tap, x: Tensor, rows: Tensor | None) -> None:
        """As `observe_taps` calls it: x [..., K] is about to enter the linears of a tap."""
        if tap.reads == Space.MLP:
            self.send((DOWN, tap.expert or 0, ChannelMoments.sums(x.float())))
        elif tap.reads == Space.VALUE:
            self._mixed(x.float().reshape(-1, x.shape[-1]))
        elif (norm := self.fed_by.get(tap.linears[0].name)) is not None:
            self.send((NORM, norm, ChannelMoments.sums(x.float())))

    def _mixed(self, rows: Tensor) -> None:
        """rows [M, heads D]: the input of the output projection."""
        heads, width = self.arch.n_kv_heads, self.arch.head_dim
        weight = 1 / (rows.square().sum(1) + TINY)
        groups = rows.reshape(len(rows), heads, -1, width).permute(1, 2, 0, 3)  # [kv heads, group, M, D]
        self.send((MIXED, 0, VectorMoments.sums(groups.flatten(1, 2), weight.repeat(groups.shape[1])[None])))

    def attention(self, call: AttentionCall) -> None:
        """As `observe_block_attention` calls it."""
        heads, width = self.arch.n_kv_heads, self.arch.head_dim
        query, key, value = (x.float().transpose(0, 1).flatten(1, 2) for x in (call.query, call.key, call.value))
        self.send((VALUES, 0, VectorMoments.sums(value)))
        self.send((QUERY, 0, [query.reshape(heads, -1, width).square().sum(1, dtype=torch.float64)]))
        self.send((KEY, 0, [key.square().sum(1, dtype=torch.float64)]))


Visit = Callable[[int, nn.Module, BlockMoments], None]
"""(layer, the block with its weights, the moments of its activations)."""


@torch.no_grad()
def visit_blocks(
    runner: BlockRunner,
    windows: Tensor,
    visit: Visit,
    progress: Progress = silent,
    ranks: Ranks = SINGLE,
    norms: bool = False,
) -> None:
    """Run `windows` int64 [samples, seqlen] through the model, block by block, one window at a time; call `visit` once
    for each block.

    ranks: processes that share the windows; each visits some of the blocks. norms: the outputs of norms are wanted."""
    arch = runner.arch
    hidden = {number: runner.embed(windows[number : number + 1]) for number in ranks.own(range(len(windows)))}
    spaces = (Space.MLP, Space.VALUE, Space.RESIDUAL) if norms else (Space.MLP, Space.VALUE)
    taps = [tap for tap in arch.taps() if tap.reads in spaces]
    for layer in range(arch.n_layers):
        progress("moments", layer, arch.n_layers)
        moments, owner = BlockMoments(arch), layer % ranks.size
        mail = Mail(ranks, moments.add)
        sums = ChunkSums(arch, partial(mail.send, owner))
        block = runner.block(layer) if hidden or owner == ranks.rank else None
        with ExitStack() as stack:
            if block is not None:
                stack.enter_context(observe_taps(block, taps, sums.tap))
                stack.enter_context(observe_block_attention(block, sums.attention))
            for number in ranks.rounds(len(windows)):
                if number is not None:
                    assert block is not None
                    hidden[number] = runner.run(block, hidden[number])
                mail.deliver()
        if owner == ranks.rank:
            assert block is not None
            visit(layer, block, moments)
        del block
    progress("moments", arch.n_layers, arch.n_layers)
