"""R2 refined per key/value head, by the alternation that refines R1 (DFRot, arXiv 2412.00648, there R1 alone).

R2 turns a head's values inside v_proj and back inside o_proj. What is rounded in its basis: the values, in the cache,
one range per token and head; and what attention makes of them, at o_proj's input. Both are rows of a head here, each of
norm sqrt(head_dim), so that the objective is a mean of relative errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch
from dfrot.calib.observe import linear_of
from dfrot.hf.blocks import BlockRunner
from dfrot.rotation.features import from_rows, normalise
from dfrot.rotation.refine import RefineSettings, refine
from dfrot.stage import Progress, silent

ROWS = 4096  # of one head, half of them values


class Heads:
    """What the key/value heads of one block hold and give, in place of a cache: `update` of `SimulatedKV`."""

    def __init__(self, arch: BoundArch) -> None:
        self.arch = arch
        self.values = self.outputs = torch.empty(0)

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """values [1, Hkv, S, head_dim]."""
        self.values = values[0]
        return keys, values

    def watch(self, block: nn.Module) -> Any:
        """Hook the linear that reads attention outputs [1, S, H head_dim]; returns the handle."""
        name = next(one.name for one in self.arch.spec.linears if one.reads == "v")

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            heads = args[0][0].reshape(args[0].shape[1], self.arch.n_kv_heads, -1, self.arch.head_dim)
            self.outputs = heads.permute(1, 0, 2, 3).flatten(1, 2)  # query heads of one key/value head together

        return linear_of(block, name).register_forward_pre_hook(before)

    def rows(self, head: int, seed: int) -> Tensor:
        """float32 [n, head_dim]: a seeded sample of values, and as many outputs."""
        parts = []
        for source in (self.values[head], self.outputs[head]):
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(len(source), generator=generator)[: ROWS // 2].sort().values
            parts.append(normalise(source[chosen], 1e-12))
        rows = torch.cat(parts)
        return rows[(rows != 0).any(1)]


@dataclass(frozen=True)
class HeadsRefined:
    """matrices float64 [layers * key/value heads, head_dim, head_dim]; start, error: mean squared error per row of norm
    sqrt(head_dim), under the rotations it started from and at the end."""

    matrices: Tensor
    start: float
    error: float


def refine_heads(
    runner: BlockRunner, tokens: Tensor, starts: Tensor, settings: RefineSettings, progress: Progress = silent
) -> HeadsRefined:
    """Refine R2 from `starts` float64 [layers, head_dim, head_dim] on one sequence of tokens int64 [1, S].

    settings: those of R1; massive tokens have no weight of their own here, their values are small. One block is in
    memory at a time."""
    arch = runner.arch
    hidden, found, errors = runner.embed(tokens), [], []
    for layer in range(arch.n_layers):
        progress("refine heads", layer, arch.n_layers)
        block, heads = runner.block(layer), Heads(arch)
        handle = heads.watch(block)
        hidden = runner.run(block, hidden, heads)
        handle.remove()
        del block
        for head in range(arch.n_kv_heads):
            matrix, start, error = _refined(heads.rows(head, settings.seed), starts[layer], settings)
            found.append(matrix)
            errors.append((start, error))
    progress("refine heads", arch.n_layers, arch.n_layers)
    start, error = torch.tensor(errors, dtype=torch.float64).mean(0).tolist()
    return HeadsRefined(torch.stack(found), start, error)


def _refined(rows: Tensor, start: Tensor, settings: RefineSettings) -> tuple[Tensor, float, float]:
    """Matrix, and the error per row before and after."""
    if not len(rows):
        return start, 0.0, 0.0  # a head that says nothing
    features = from_rows(rows, massive=torch.zeros(len(rows), dtype=torch.bool))
    result = refine(features, start, settings)
    return result.matrix, result.stats["common_error_start"], result.stats["common_error"]
