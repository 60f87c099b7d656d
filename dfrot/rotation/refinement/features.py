"""Calibration rows for the refinement: outputs of every RMSNorm that feeds linears, without its gain.

The gain is fused into the linears before a rotation, so what R1 meets is x / rms(x). Rows stream block by block;
every massive row is kept, common rows are a seeded sample per norm with weight 1 / p, so that weighted sums over
the features are unbiased estimates of the sums over all tokens (DFRot, section 3.3; which norms: its public code).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfrot.errors import InputError
from dfrot.rotation.refinement.massive_tokens import MassiveRule
from dfrot.runtime.block_runner import BlockRunner
from dfrot.stage_folder import Progress, silent

ROW_BYTES = 256 * 2**20  # default budget of `collect_rows` for the kept rows (float32)
MASSIVE_ROOM = 8  # more than one row in 8 beyond the budget cannot be massive: the rule is wrong


@dataclass(frozen=True)
class CalibrationRows:
    """Weighted rows. rows float32 [n, d] of norm about sqrt(d); weight float32 [n] (how many tokens a row stands
    for, 1 for massive rows); massive bool [n]; tap, position, token int64 [n]: index into `taps`, position in the
    sample, token id. Rows are ordered by tap, then position. total: rows seen, kept or not."""

    rows: Tensor
    weight: Tensor
    massive: Tensor
    tap: Tensor
    position: Tensor
    token: Tensor
    taps: tuple[str, ...]
    total: int
    rule: MassiveRule = field(default_factory=MassiveRule)

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    @property
    def n_massive(self) -> int:
        return int(self.massive.sum())

    def report(self, decode: Callable[[int], str] | None = None) -> dict[str, Any]:
        """What the rule found, as JSON: counts, per tap the massive positions, and the tokens (id, text, count)."""
        where = self.massive.nonzero().flatten()
        ids, counts = torch.unique(self.token[where], return_counts=True)
        order = sorted(range(len(ids)), key=lambda i: (-int(counts[i]), int(ids[i])))
        tokens = [
            {"id": int(ids[i]), "count": int(counts[i])} | ({"text": decode(int(ids[i]))} if decode else {})
            for i in order
        ]
        per_tap = {
            name: self.position[where[self.tap[where] == index]].tolist()
            for index, name in enumerate(self.taps)
            if bool((self.tap[where] == index).any())
        }
        return {
            "rule": f"{self.rule.name}:{self.rule.threshold:.6g}",
            "rows": self.total,
            "kept": len(self.rows),
            "massive": len(where),
            "share": len(where) / max(self.total, 1),
            "positions": sorted({int(p) for p in self.position[where]}),
            "tokens": tokens,
            "taps": per_tap,
        }


def unit_weight_rows(rows: Tensor, rule: MassiveRule | None = None, massive: Tensor | None = None) -> CalibrationRows:
    """Features of given rows [n, d], all kept with weight 1; `massive` bool [n] overrides the rule's mask."""
    rule = rule or MassiveRule()
    rows = rows.float()
    count = len(rows)
    index = torch.arange(count)
    zeros = torch.zeros(count, dtype=torch.long)
    mask = rule.mask(rows) if massive is None else massive
    return CalibrationRows(rows, torch.ones(count), mask, zeros, index, zeros, ("rows",), count, rule)


def normalise(hidden: Tensor, eps: float) -> Tensor:
    """RMSNorm without gain of hidden [..., d], float32: x / sqrt(mean(x^2) + eps)."""
    hidden = hidden.float()
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps)


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
    arch, rule = runner.arch, rule or MassiveRule()
    eps = float(arch.config.get("rms_norm_eps", 1e-6))
    names = [norm.name for norm in arch.spec.norms if norm.feeds and not norm.late]
    taps = tuple(arch.full(layer, name) for layer in range(arch.n_layers) for name in names)
    limit = max(len(taps), ROW_BYTES // (4 * arch.hidden)) if max_rows is None else max_rows
    if limit < len(taps):
        raise InputError(f"max_rows {limit}: at least one row for each of the {len(taps)} norms is needed")
    quota = limit // len(taps)
    total = tokens.shape[1] * len(taps)
    buffer = torch.empty(min(total, limit + limit // MASSIVE_ROOM), arch.hidden)  # filled in place: no second copy
    kept: list[tuple[Tensor, Tensor, Tensor]] = []  # weight, massive, position of each tap
    filled = 0

    def keep(hidden: Tensor) -> None:
        nonlocal filled
        rows = normalise(hidden.reshape(-1, hidden.shape[-1]), eps)
        weight, massive, position = _sample(rule.mask(rows), quota, seed, len(kept))
        if filled + len(position) > len(buffer):
            raise InputError(
                f"massive rule {rule.name}: marks more than 1/{MASSIVE_ROOM} of the rows (at {taps[len(kept)]}), which "
                "are no outliers then; choose another --massive-rule or threshold"
            )
        torch.index_select(rows, 0, position, out=buffer[filled : filled + len(position)])
        filled += len(position)
        kept.append((weight, massive, position))

    hidden = runner.embed(tokens)
    for layer in range(arch.n_layers):
        progress("features", layer, arch.n_layers)
        block = runner.block(layer)
        caught: dict[str, Tensor] = {}
        hooks = [block.get_submodule(name).register_forward_pre_hook(_catch(caught, name)) for name in names]
        hidden = runner.run(block, hidden)
        for hook in hooks:
            hook.remove()
        for name in names:
            keep(caught.pop(name))
        del block, hooks  # before the next one is built: one block in memory
    progress("features", arch.n_layers, arch.n_layers)
    weight, massive, position = (torch.cat(part) for part in zip(*kept))
    tap = torch.repeat_interleave(torch.arange(len(taps)), torch.tensor([len(part[0]) for part in kept]))
    return CalibrationRows(buffer[:filled], weight, massive, tap, position, tokens[0][position], taps, total, rule)


def _catch(into: dict[str, Tensor], name: str) -> Callable[[Any, tuple[Any, ...]], None]:
    def hook(module: Any, inputs: tuple[Any, ...]) -> None:
        into[name] = inputs[0].detach()

    return hook


def _sample(massive: Tensor, quota: int, seed: int, tap: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, mask and position of the rows to keep: every massive one, at most `quota` common ones, in order."""
    common = (~massive).nonzero().flatten()
    chosen = common
    if len(common) > quota:
        generator = np.random.Generator(np.random.PCG64([seed, tap]))
        picked = np.sort(generator.permutation(len(common))[:quota])
        chosen = common[torch.from_numpy(picked)]
    position = torch.cat([massive.nonzero().flatten(), chosen]).sort().values
    weight = torch.ones(len(massive))
    if len(chosen):
        weight[chosen] = len(common) / len(chosen)
    return weight[position], massive[position], position
