"""norm -> q, k, v, gate, up: channels of a norm's output are scaled by its gain, the linears that read it divided.

SmoothQuant (arXiv 2211.10438) for formats with a scale per group of channels: a channel that is larger than the others
of its group takes their precision, and one that large weights multiply needs more. `up_down.balance` says by how much.
It is for models without R1, which mixes the channels that this tells apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.arch import BoundArch, Space
from dfrot.transforms.base import BlockMaps, BlockView
from dfrot.transforms.up_down import SHARES, balance, energy_ratio


class NormScale:
    """FreeTransform `norm-scale`."""

    name = "norm-scale"
    modes: tuple[str, ...] = ("groups", "rms")
    fills: tuple[str, ...] = ("norm",)

    def refuses(self, arch: BoundArch) -> str | None:
        """As `FreeTransform.refuses`."""
        return None

    def solve(self, view: BlockView, maps: BlockMaps, mode: str) -> dict[str, Any]:
        """As `FreeTransform.solve`. A gain of 0 becomes 1: the weights that read it are multiplied by 0."""
        gains: list[Tensor] = []
        ratios = []
        for norm, moments in zip(view.arch.spec.norms, view.moments.norms, strict=True):
            stored = view.block.get_submodule(norm.name).weight
            assert isinstance(stored, Tensor)
            gain = stored.detach().double() + norm.offset
            gain = torch.where(gain == 0, 1.0, gain)
            if norm in view.arch.spec.rotated_norms and moments.count:
                readers = [weight for linear, weight in view.weights(Space.RESIDUAL) if linear.name in norm.feeds]
                square = torch.stack([weight.square().sum(0) for weight in readers]).sum(0)
                factor = balance(moments.square, square, SHARES[mode])
                ratios.append(energy_ratio(moments.square, square, factor))
                gain = gain * factor
            gains.append(gain)
        maps.norm = torch.stack(gains)
        return {"energy": sum(ratios) / max(len(ratios), 1)}
