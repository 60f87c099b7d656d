"""Calibration rows of a checkpoint: one sample through its blocks, the outputs of its RMSNorms kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.progress import Progress, silent
from dfrot.rotation.refinement.calibration_rows import CalibrationRows, normalise, sample_positions
from dfrot.rotation.refinement.massive_rule import MassiveRule
from dfrot.rotation.refinement.massive_tokens import massive_mask
from dfrot.runtime.block_runner import BlockRunner

ROW_BYTES = 256 * 2**20  # default budget for the kept rows (float32)
MASSIVE_ROOM = 8  # more than one row in 8 beyond the budget cannot be massive: the rule is wrong


def collect_rows(
    runner: BlockRunner,
    tokens: Tensor,
    *,
    max_rows: int | None = None,
    seed: int = 0,
    rule: MassiveRule | None = None,
    progress: Progress = silent,
) -> CalibrationRows:
    """Run `tokens` int64 [1, S] through the model and keep up to `max_rows` rows (default: 256 MB of them).

    Raises InputError when the sample is no single sequence or when the rule marks more rows than fit.
    """
    if tokens.ndim != 2 or tokens.shape[0] != 1 or tokens.shape[1] < 1:
        raise InputError(f"calibration tokens have shape {list(tokens.shape)}; one sequence [1, S] is needed")
    arch = runner.arch
    names = [norm.name for norm in arch.spec.rotated_norms]
    taps = tuple(arch.full(layer, name) for layer in range(arch.n_layers) for name in names)
    buffer = _RowBuffer(runner, taps, tokens.shape[1], max_rows, seed, rule or MassiveRule())
    hidden = runner.embed(tokens)
    for layer in range(arch.n_layers):
        progress("features", layer, arch.n_layers)
        block = runner.block(layer)
        norm_inputs: dict[str, Tensor] = {}
        hooks = [block.get_submodule(name).register_forward_pre_hook(_store(norm_inputs, name)) for name in names]
        hidden = runner.run(block, hidden)
        for hook in hooks:
            hook.remove()
        for name in names:
            buffer.add(norm_inputs.pop(name))
        del block, hooks  # before the next one is built: one block in memory
    progress("features", arch.n_layers, arch.n_layers)
    return buffer.rows(tokens[0])


class _RowBuffer:
    """Kept rows, written in place (no second copy of them), tap by tap."""

    def __init__(
        self,
        runner: BlockRunner,
        taps: tuple[str, ...],
        seqlen: int,
        max_rows: int | None,
        seed: int,
        rule: MassiveRule,
    ) -> None:
        hidden = runner.arch.hidden
        limit = max(len(taps), ROW_BYTES // (4 * hidden)) if max_rows is None else max_rows
        if limit < len(taps):
            raise InputError(
                f"`max_rows` {limit}: at least one row for each of the {len(taps)} norms is needed",
                field="max_rows",
                limit=len(taps),
            )
        self.eps = runner.arch.norm_eps
        self.taps, self.seed, self.rule = taps, seed, rule
        self.quota = limit // len(taps)
        self.total = seqlen * len(taps)
        self.buffer = torch.empty(min(self.total, limit + limit // MASSIVE_ROOM), hidden)
        self.filled = 0
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []  # weight, massive, position of each tap

    def add(self, hidden: Tensor) -> None:
        """hidden [1, S, d]: the input of the next tap's norm. Raises InputError when too many rows are massive."""
        rows = normalise(hidden.reshape(-1, hidden.shape[-1]), self.eps)
        tap = len(self.kept)
        weight, massive, position = sample_positions(massive_mask(rows, self.rule), self.quota, self.seed, tap)
        end = self.filled + len(position)
        if end > len(self.buffer):
            raise InputError(
                f"massive rule {self.rule.name}: marks more than 1/{MASSIVE_ROOM} of the rows (at {self.taps[tap]}), "
                "which are no outliers then; choose another `massive_rule` or threshold",
                field="massive_rule",
            )
        torch.index_select(rows, 0, position, out=self.buffer[self.filled : end])
        self.filled = end
        self.kept.append((weight, massive, position))

    def rows(self, tokens: Tensor) -> CalibrationRows:
        """Everything that was kept; tokens int64 [S]: the sample."""
        weight, massive, position = (torch.cat(parts) for parts in zip(*self.kept))
        counts = torch.tensor([len(parts[0]) for parts in self.kept])
        tap = torch.repeat_interleave(torch.arange(len(self.taps)), counts)
        return CalibrationRows(
            self.buffer[: self.filled],
            weight,
            massive,
            tap,
            position,
            tokens[position],
            self.taps,
            self.total,
            self.rule,
        )


def _store(inputs: dict[str, Tensor], name: str) -> Callable[[Any, tuple[Any, ...]], None]:
    """A forward pre-hook that keeps the module's input under `name`."""

    def hook(module: Any, args: tuple[Any, ...]) -> None:
        inputs[name] = args[0].detach()

    return hook
