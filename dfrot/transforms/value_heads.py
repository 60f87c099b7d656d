"""v -> o: centring, scaling and whitening of value heads.

Attention mixes tokens, never channels, and its weights sum to 1: a constant that is subtracted from all values comes
out unchanged, and any invertible matrix per kv head passes through. Three transforms use this, in this order:

- head-center subtracts a mean. An asymmetric grid need not cover what all tokens share.
- head-scale multiplies each head by a number, since all heads of o's input share one scale.
- head-whiten multiplies by a matrix (WUSH, arXiv 2512.00956): with C_x the covariance of o's input, C_w that of o's
  columns, the T with T^T C_x T = T^-1 C_w T^-T diagonal makes the product of both energies smallest; R2, a Hadamard
  matrix, then spreads both. It holds head-scale's optimum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.arch import BoundArch
from dfrot.matrix_stacks import inverses
from dfrot.rotation.transforms import refuses_shift
from dfrot.transforms.base import BlockMaps, BlockView

DAMPING = 0.01  # share of the mean, of every spectrum that is inverted
CACHE_SHARE = 0.5  # weight of the values, which the cache rounds, beside attention's output, which o's input rounds


class HeadCenter:
    """FreeTransform `head-center`."""

    name = "head-center"
    modes: tuple[str, ...] = ("output", "values")
    fills: tuple[str, ...] = ("value_shift",)

    def refuses(self, arch: BoundArch) -> str | None:
        """As `FreeTransform.refuses`."""
        return refuses_shift(arch)

    def solve(self, view: BlockView, maps: BlockMaps, mode: str) -> dict[str, Any]:
        """As `FreeTransform.solve`. The mean is that of attention's output (`output`) or of the values (`values`)."""
        moments = view.moments
        maps.value_shift = (moments.mixed if mode == "output" else moments.values).mean
        shares = {}
        for name, moment in (("output", moments.mixed), ("values", moments.values)):
            trace = _trace(moment.covariance()).sum()
            shares[name] = float(_trace(moment.covariance(maps.value_shift)).sum() / trace.clamp_min(1e-300))
        return {"energy_left": shares}


class HeadScale:
    """FreeTransform `head-scale`."""

    name = "head-scale"
    modes: tuple[str, ...] = ("product", "rms")
    fills: tuple[str, ...] = ("value",)

    def refuses(self, arch: BoundArch) -> str | None:
        """As `FreeTransform.refuses`."""
        return None

    def solve(self, view: BlockView, maps: BlockMaps, mode: str) -> dict[str, Any]:
        """As `FreeTransform.solve`. `product`: the smallest product of both energies; `rms`: heads of equal size."""
        activation = _trace(view.mixed_covariance(maps)[0])
        factor = activation.clamp_min(1e-300).pow(-0.5)
        if mode == "product":
            factor = (_trace(view.output_gram()).clamp_min(1e-300) / activation.clamp_min(1e-300)).pow(0.25)
        factor = factor / factor.log().mean().exp()
        maps.add_value(factor[:, None, None] * torch.eye(view.arch.head_dim, dtype=torch.float64))
        return {"spread": float(factor.max() / factor.min())}


class HeadWhiten:
    """FreeTransform `head-whiten`."""

    name = "head-whiten"
    modes: tuple[str, ...] = ("joint", "output")
    fills: tuple[str, ...] = ("value",)

    def refuses(self, arch: BoundArch) -> str | None:
        """As `FreeTransform.refuses`."""
        return None

    def solve(self, view: BlockView, maps: BlockMaps, mode: str) -> dict[str, Any]:
        """As `FreeTransform.solve`. `joint` counts the values of the cache beside attention's output."""
        output, values = view.mixed_covariance(maps)
        if mode == "joint":
            scale = _trace(output) / _trace(values).clamp_min(1e-300)
            output = output + CACHE_SHARE * scale[:, None, None] * values
        gram = view.output_gram()
        if maps.value is not None:
            inverse = inverses(maps.value)
            gram = inverse @ gram @ inverse.mT
        matrices = torch.stack([balancing_matrix(*pair) for pair in zip(output, gram)])
        before = float((_trace(output).sum() * _trace(gram).sum()).clamp_min(1e-300))
        inverse = inverses(matrices)
        after = _trace(matrices.mT @ output @ matrices).sum() * _trace(inverse @ gram @ inverse.mT).sum()
        maps.add_value(matrices)
        return {"energy": float(after) / before}


def balancing_matrix(activation: Tensor, weight: Tensor, damping: float = DAMPING) -> Tensor:
    """T [D, D] with T^T activation T = T^-1 weight T^-T = S, diagonal, up to damping; both symmetric [D, D].

    With activation = A A^T, weight = B B^T and B^T A = U S V^T: T = B U S^-1/2, T^-1 = S^-1/2 V^T A^T."""
    a, b = (_root(_damped(matrix, damping)) for matrix in (activation, weight))
    left, spectrum, _ = torch.linalg.svd(b.mT @ a)
    spectrum = spectrum + damping * spectrum.mean()
    matrix: Tensor = b @ left * spectrum.rsqrt()
    return matrix


def _damped(matrix: Tensor, damping: float) -> Tensor:
    mean = matrix.diagonal().mean().clamp_min(1e-300)
    return matrix + damping * mean * torch.eye(len(matrix), dtype=matrix.dtype)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    return root


def _trace(matrices: Tensor) -> Tensor:
    """[heads, D, D] -> [heads]."""
    return matrices.diagonal(dim1=1, dim2=2).sum(1)
