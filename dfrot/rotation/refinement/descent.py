"""One round of the refinement, cheap: products in tiles, Procrustes without a singular value decomposition.

Procrustes asks for the polar factor of C = sum w x^T Q(xR). Written as C R^T = S - E with the fixed second moment
S = sum w x^T x, the new rotation is polar(C R^T) R: a turn away from R by a skew matrix V with S V + V S = skew
part of C R^T twice, to first order. In the eigenbasis of S (found once, the rows are moved into it) that equation
is solved entry by entry, V_ij = (N_ij - N_ji) / (s_i + s_j), in place of a decomposition per round. A floor under
s_i + s_j is a proximal term: directions without energy stay where they are instead of turning at random, which is
what an exact polar factor does with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.rotation.refinement.features import CalibrationRows
from dfrot.rotation.refinement.row_grid import TokenQuantizer
from dfrot.rotation.refinement.tiles import CACHED, Tiles, spans, square, tile_rows

FLOOR = 0.05  # of the mean eigenvalue of the common rows (1 per row): the proximal term
GROUP = 8  # tiles of rows whose quantized images are held at a time
MAX_TURN = 1.0  # radians: cap of the largest angle of one step


class ProcrustesStep:
    """The rows in the eigenbasis of their weighted second moment, and what a round does with them."""

    def __init__(self, features: CalibrationRows, gamma: float, grid: TokenQuantizer, tiles: Tiles, half: bool) -> None:
        """half: bfloat16 products for common rows and corrections (float32 for massive rows and all that decides
        orthogonality)."""
        self.grid, self.tiles, self.gamma2 = grid, tiles, gamma**2
        self.dtype = torch.bfloat16 if half else torch.float32
        self.rows = tile_rows(features.width)
        common = (~features.massive).nonzero().flatten()
        self.weight = features.weight[common]
        massive = features.rows[features.massive]
        self.basis, spectrum = self._eigenbasis(features, common, massive)
        floor = FLOOR * max(float(self.weight.sum()), float(self.gamma2 * len(massive)), 1.0)
        self.spectrum = spectrum.clamp_min(0.0).add_(floor)
        self.massive = massive @ self.basis
        self.common = torch.empty(len(common), features.width, dtype=self.dtype)

        basis = self.basis.to(self.dtype)

        def move(part: slice) -> None:
            torch.mm(features.rows[common[part]].to(self.dtype), basis, out=self.common[part])

        tiles.each(move, spans(len(common), self.rows))

    def _eigenbasis(self, features: CalibrationRows, common: Tensor, massive: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvectors float32 [d, d] (columns) and eigenvalues of sum w x^T x (+ gamma^2 for massive rows)."""
        width = features.width
        moment = torch.zeros(width, width)
        for group in spans(len(common), GROUP * self.rows):
            x = features.rows[common[group]]
            left = (x * self.weight[group, None]).to(self.dtype)
            right = x.to(self.dtype)
            self._add_product(moment, left, right)
        moment.addmm_(massive.T, massive, alpha=self.gamma2)
        moment = (moment + moment.T).mul_(0.5)
        values, vectors = torch.linalg.eigh(moment.double() if width <= 1024 else moment)
        return vectors.float().contiguous(), values.float()

    def _add_product(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """total [d, d] += left^T right, in tiles of total's rows."""

        def tile(part: slice) -> None:
            if left.dtype == total.dtype:
                total[part].addmm_(left[:, part].T, right)
            else:
                total[part] += left[:, part].T @ right

        self.tiles.each(tile, spans(total.shape[0], square(total.shape[0])))

    def enter(self, matrix: Tensor) -> Tensor:
        """A rotation float64 [d, d] in the eigenbasis, float32."""
        return self.tiles.matmul(self.basis.T.contiguous(), matrix.float())

    def leave(self, turned: Tensor) -> Tensor:
        """Back again, float64 (not yet orthogonal to rounding)."""
        return self.tiles.matmul(self.basis.double(), turned.double())

    def measure(self, turned: Tensor) -> tuple[float, Tensor]:
        """The objective (sums in float64) and C float32 [d, d] at `turned` float32 [d, d]."""
        total = torch.zeros_like(turned)
        factor = turned.to(self.dtype)
        value = 0.0
        image = torch.empty(min(GROUP * self.rows, len(self.common)), turned.shape[0], dtype=self.dtype)
        for group in spans(len(self.common), GROUP * self.rows):
            rows, weight = self.common[group], self.weight[group]

            def tile(part: slice, rows: Tensor = rows, weight: Tensor = weight) -> float:
                return self._quantize(rows[part] @ factor, weight[part], image[part])

            value += sum(self.tiles.each(tile, spans(len(rows), self.rows)))
            self._add_product(total, rows, image[: len(rows)])
        if len(self.massive):
            y = self.massive @ turned
            levels, scale = self.grid.levels(y)
            quantized = levels.mul_(scale)
            value += self.gamma2 * float((y - quantized).double().square_().sum())
            total.addmm_(self.massive.T, quantized, alpha=self.gamma2)
        return value, total

    def _quantize(self, y: Tensor, weight: Tensor, image: Tensor) -> float:
        """Weighted squared error of rows y [n, d]; writes weight * Q(y) into image."""
        value = 0.0
        for part in spans(len(y), max(1, CACHED // y.shape[1])):
            rows = y[part].float()
            levels, scale = self.grid.levels(rows)
            quantized = levels.mul_(scale)
            error = rows.sub_(quantized).square_().sum(1, dtype=torch.float64)
            value += float((error * weight[part]).sum())
            image[part] = quantized.mul_(weight[part, None])
        return value

    def direction(self, turned: Tensor, product: Tensor) -> Tensor:
        """The skew matrix V [d, d] that turns `turned` towards polar(product), in the eigenbasis."""
        crossed = self.tiles.matmul(product, turned.T.contiguous())

        def tile(part: slice) -> Tensor:
            return (crossed[part] - crossed[:, part].T) / (self.spectrum[part, None] + self.spectrum)

        return torch.cat(self.tiles.each(tile, spans(len(crossed), square(len(crossed)))))

    def turn(self, turned: Tensor, skew: Tensor) -> Tensor:
        """exp(skew) turned, orthogonal to about 1e-6: second order, then Newton-Schulz steps."""
        small, factor = skew.to(self.dtype), turned.to(self.dtype)
        first = self.tiles.matmul(small, factor)
        second = self.tiles.matmul(small, first)
        found = turned + first + second.mul_(0.5)
        for _ in range(6):
            gap = self.tiles.matmul(found.T.contiguous(), found).neg_()
            gap.diagonal().add_(1.0)
            size = float(gap.square().sum(1).max().sqrt())
            found += self.tiles.matmul(found.to(self.dtype), gap.to(self.dtype)).mul_(0.5)
            if size < 1e-3:
                break
        return found


def largest_angle(skew: Tensor, steps: int = 6) -> float:
    """An estimate of the spectral norm of a skew matrix (its largest angle), by power iteration."""
    vector = torch.cos(torch.arange(len(skew), dtype=torch.float32) * 2.399963)
    size = 0.0
    for _ in range(steps):
        vector = skew @ (vector / vector.norm().clamp_min(1e-30))
        size = float(vector.norm())
    return size


def cap_angle(skew: Tensor) -> Tensor:
    """`skew`, scaled down so that no step turns by more than MAX_TURN."""
    size = largest_angle(skew)
    return skew.mul_(MAX_TURN / size) if size > MAX_TURN else skew
