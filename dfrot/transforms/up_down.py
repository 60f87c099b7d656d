"""up -> down: channels of the gated product are scaled (the place of SmoothRot, arXiv 2506.05413).

R4 spreads the energy of an input over its channels, and that of a weight row. What is left of the rounding error of
`x W^T` is the product of both energies, `sum x_c^2 s_c^2 * sum w_c^2 / s_c^2`, which Cauchy-Schwarz makes smallest at
s_c^2 = rms(w_c) / rms(x_c): mode `rms`. Mode `max` takes maxima instead, as SmoothRot does. Mode `groups` is for
formats with a scale per group of channels, without R4 (`balance`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.arch import BoundArch, Space
from dfrot.transforms.base import BlockMaps, BlockView

LIMIT = 64.0  # the most by which a channel is scaled: weights are stored in 16 bits
FLOOR = 1e-6  # of the largest channel: what is smaller counts as that
HALF = (0.5, 0.5)  # of the logarithms of the size of activations and weights: the optimum behind a Hadamard matrix
GROUPS = (0.3, 0.5)  # of formats with a scale per group, whose groups spare the others their outliers
SHARES = {"rms": HALF, "groups": GROUPS}  # by mode


class UpDown:
    """FreeTransform `up-down`."""

    name = "up-down"
    modes: tuple[str, ...] = ("rms", "max", "groups")
    fills: tuple[str, ...] = ("up",)

    def refuses(self, arch: BoundArch) -> str | None:
        """As `FreeTransform.refuses`."""
        return None

    def solve(self, view: BlockView, maps: BlockMaps, mode: str) -> dict[str, Any]:
        """As `FreeTransform.solve`."""
        factors, gains = [], []
        for linear, weight in view.weights(Space.MLP):
            moments = view.moments.down[linear.expert or 0]
            if not moments.count:  # an expert that no token reached
                factors.append(torch.ones(weight.shape[1], dtype=torch.float64))
                continue
            square = weight.square().mean(0)
            if mode == "max":
                factors.append(balance(moments.peak.square(), weight.abs().amax(0).square()))
            else:
                factors.append(balance(moments.square, square, SHARES[mode]))
            gains.append(energy_ratio(moments.square, square, factors[-1]))
        maps.up = torch.stack(factors)
        return {"energy": sum(gains) / max(len(gains), 1)}


def balance(activation: Tensor, weight: Tensor, shares: tuple[float, float] = HALF) -> Tensor:
    """Factors [K] of activations (weights are divided by them) from the energies [K] of both, of geometric mean 1:
    rms(w)^b / rms(x)^a with the shares (a, b)."""
    activation = activation.clamp_min(FLOOR * float(activation.max()) + 1e-300)
    weight = weight.clamp_min(FLOOR * float(weight.max()) + 1e-300)
    factor = weight.pow(shares[1] / 2) / activation.pow(shares[0] / 2)
    factor = factor / factor.log().mean().exp()
    return factor.clamp(1 / LIMIT, LIMIT)


def energy_ratio(activation: Tensor, weight: Tensor, factor: Tensor) -> float:
    """The product of both energies behind a scaling, over the one before it: what rounding errors are multiplied by."""
    after = (activation * factor.square()).sum() * (weight / factor.square()).sum()
    return float(after / (activation.sum() * weight.sum()).clamp_min(1e-300))
