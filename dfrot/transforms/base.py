"""The interface of a transform: from a block's weights and moments to the numbers that are fused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dfrot.arch import BoundArch, Linear, Space
from dfrot.calib.taps import inner_linear
from dfrot.rotation.transforms import Transforms
from dfrot.transforms.moments import BlockMoments


@dataclass
class BlockMaps:
    """The maps of one block, as `Transforms` stacks them over layers; each transform adds to those before it."""

    up: Tensor | None = None
    """[experts or 1, intermediate]."""
    value: Tensor | None = None
    """[kv heads, D, D]."""
    value_shift: Tensor | None = None
    """[kv heads, D]."""
    key: Tensor | None = None
    """[kv heads, D]."""
    norm: Tensor | None = None
    """[norms, hidden]."""

    def add_value(self, matrices: Tensor) -> None:
        """Let `matrices` [kv heads, D, D] act behind the maps of the values so far."""
        self.value = matrices if self.value is None else self.value @ matrices


def stacked(blocks: list[BlockMaps]) -> Transforms:
    """The maps of all layers together."""
    maps: dict[str, Tensor] = {}
    for item in fields(BlockMaps):
        parts = [getattr(block, item.name) for block in blocks]
        if parts and parts[0] is not None:
            maps[item.name] = torch.stack(parts)
    return Transforms(**maps)


@dataclass(frozen=True)
class BlockView:
    """What a transform may look at."""

    arch: BoundArch
    """The checkpoint's architecture."""
    block: nn.Module
    """The block with its weights in float32, before any rotation."""
    moments: BlockMoments
    """Of its activations."""

    def weights(self, reads: Space) -> Iterator[tuple[Linear, Tensor]]:
        """The linears that read a space, with their weights float64 [rows, cols]."""
        for linear in self.arch.spec.linears:
            if linear.reads == reads:
                yield linear, inner_linear(self.block, linear.name).weight.detach().double()

    def output_gram(self) -> Tensor:
        """W^T W of the output projection's columns, summed over the query heads of a group, [kv heads, D, D]."""
        heads, width = self.arch.n_kv_heads, self.arch.head_dim
        ((_, weight),) = self.weights(Space.VALUE)
        columns = weight.T.reshape(heads, -1, width, len(weight))
        return torch.einsum("kgdn,kgen->kde", columns, columns)

    def mixed_covariance(self, maps: BlockMaps) -> tuple[Tensor, Tensor]:
        """Covariance of attention's output and of the values [kv heads, D, D], around the shift, if any, and behind
        the maps so far."""
        covariances = (moment.covariance(maps.value_shift) for moment in (self.moments.mixed, self.moments.values))
        first, second = (c if maps.value is None else maps.value.mT @ c @ maps.value for c in covariances)
        return first, second


class FreeTransform(Protocol):
    """One free transform."""

    name: str
    """What `NAME:MODE` calls it."""
    modes: tuple[str, ...]
    """Its variants; the first is the default."""
    fills: tuple[str, ...]
    """The maps it makes, as `BlockMaps` names them."""

    def refuses(self, arch: BoundArch) -> str | None:
        """Why an architecture cannot have it, or None."""

    def solve(self, view: BlockView, maps: BlockMaps, mode: str) -> dict[str, Any]:
        """Add this transform's numbers for one block to `maps`; returns what the record shall say, as JSON."""
