"""One step of the refinement, made cheap: products in tiles, Procrustes without a singular value decomposition.

The Procrustes problem asks for the polar factor of C = sum w x^T Q(xR). Written as C R^T = S - E with the fixed second
moment S = sum w x^T x, the new rotation is polar(C R^T) R: to first order a rotation of R by a skew matrix V that
solves S V + V S = C R^T - (C R^T)^T. In the eigenbasis of S (computed once; the rows are moved into it) this equation
is solved entry by entry, V_ij = (N_ij - N_ji) / (s_i + s_j), in place of a decomposition per step. A floor under
s_i + s_j is a proximal term: directions without energy stay where they are, whereas an exact polar factor rotates them
at random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.rotation.refinement.calibration_rows import CalibrationRows
from dfrot.rotation.refinement.tiles import CACHED, Tiles, spans, square_tile_rows, tile_rows
from dfrot.rotation.refinement.token_quantizer import TokenQuantizer

FLOOR = 0.05  # of the mean eigenvalue of the common rows (1 per row): the proximal term
GROUP = 8  # tiles of rows whose quantized images are held at a time
MAX_ANGLE = 1.0  # radians: cap of the largest angle of one step
FLOAT64_EIGH_WIDTH = 1024  # up to this width the decomposition is made in float64: it costs little there
NEWTON_SCHULZ_STEPS = 6
NEARLY_ORTHOGONAL = 1e-3  # largest row norm of I - R^T R before the last Newton-Schulz step, which squares it
POWER_STEPS = 6  # power iterations: the largest angle to a few percent
GOLDEN_ANGLE = 2.399963  # radians: cosines of its multiples are a start vector without structure


class ProcrustesStep:
    """The calibration rows in the eigenbasis of their weighted second moment, and what one step computes from them.

    Iterates are float32 [d, d]: the rotation in that eigenbasis."""

    def __init__(
        self, rows: CalibrationRows, gamma: float, quantizer: TokenQuantizer, tiles: Tiles, half: bool
    ) -> None:
        """gamma: weight of massive rows before squaring. half: bfloat16 products for common rows and corrections
        (float32 for massive rows and all that decides orthogonality)."""
        self.quantizer, self.tiles, self.gamma2 = quantizer, tiles, gamma**2
        self.dtype = torch.bfloat16 if half else torch.float32
        self.tile = tile_rows(rows.width)
        common = (~rows.massive).nonzero().flatten()
        self.weight = rows.weight[common]
        massive = rows.rows[rows.massive]
        self.basis, spectrum = self._eigenbasis(rows, common, massive)
        floor = FLOOR * max(float(self.weight.sum()), float(self.gamma2 * len(massive)), 1.0)
        self.spectrum = spectrum.clamp_min(0.0).add_(floor)
        self.massive = massive @ self.basis
        self.common = torch.empty(len(common), rows.width, dtype=self.dtype)

        basis = self.basis.to(self.dtype)

        def to_basis(part: slice) -> None:
            torch.mm(rows.rows[common[part]].to(self.dtype), basis, out=self.common[part])

        tiles.fill(self.common, to_basis, spans(len(common), self.tile))

    def _eigenbasis(self, rows: CalibrationRows, common: Tensor, massive: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvectors float32 [d, d] (columns) and eigenvalues [d] of sum w x^T x (+ gamma^2 for massive rows)."""
        width = rows.width
        moment = torch.zeros(width, width)
        for group in spans(len(common), GROUP * self.tile):
            x = rows.rows[common[group]]
            left = (x * self.weight[group, None]).to(self.dtype)
            right = x.to(self.dtype)
            self._add_product(moment, left, right)
        self._complete(moment)
        moment.addmm_(massive.T, massive, alpha=self.gamma2)
        moment = (moment + moment.T).mul_(0.5)
        found: list[Tensor] = []
        if self.tiles.ranks.first:
            values, vectors = torch.linalg.eigh(moment.double() if width <= FLOAT64_EIGH_WIDTH else moment)
            found = [vectors.float().contiguous(), values.float()]
        basis, spectrum = self.tiles.ranks.broadcast(found)
        return basis, spectrum

    def _add_product(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """total [d, d] += left^T right, in tiles of total's rows; each rank adds to its own (see `_complete`)."""

        def tile(part: slice) -> None:
            if left.dtype == total.dtype:
                total[part].addmm_(left[:, part].T, right)
            else:
                total[part] += left[:, part].T @ right

        self.tiles.each(tile, self.tiles.ranks.own(_square_spans(total)))

    def _complete(self, total: Tensor) -> None:
        """Give every rank all rows of a sum of `_add_product`."""
        if self.tiles.ranks.size > 1:
            self.tiles.fill(total, lambda part: None, _square_spans(total))

    def to_eigenbasis(self, matrix: Tensor) -> Tensor:
        """A rotation float64 [d, d] as an iterate, float32 [d, d]."""
        return self.tiles.matmul(self.basis.T.contiguous(), matrix.float())

    def from_eigenbasis(self, iterate: Tensor) -> Tensor:
        """The rotation of an iterate, float64 [d, d] (not yet orthogonal to rounding)."""
        return self.tiles.matmul(self.basis.double(), iterate.double())

    def measure(self, iterate: Tensor) -> tuple[float, Tensor]:
        """The objective (sums in float64) and C float32 [d, d] at `iterate`."""
        total = torch.zeros_like(iterate)
        factor = iterate.to(self.dtype)
        value = 0.0
        image = torch.empty(min(GROUP * self.tile, len(self.common)), iterate.shape[0], dtype=self.dtype)
        for group in spans(len(self.common), GROUP * self.tile):
            rows, weight = self.common[group], self.weight[group]

            def tile(part: slice, rows: Tensor = rows, weight: Tensor = weight) -> float:
                return self._quantize(rows[part] @ factor, weight[part], image[part])

            value += sum(self.tiles.fill(image, tile, spans(len(rows), self.tile)))
            self._add_product(total, rows, image[: len(rows)])
        self._complete(total)
        if len(self.massive):
            y = self.massive @ iterate
            levels, scale = self.quantizer.levels(y)
            quantized = levels.mul_(scale)
            value += self.gamma2 * float((y - quantized).double().square_().sum())
            total.addmm_(self.massive.T, quantized, alpha=self.gamma2)
        return self.tiles.ranks.broadcast(value), total  # what the search does next is the same everywhere

    def _quantize(self, y: Tensor, weight: Tensor, image: Tensor) -> float:
        """Weighted squared error of rows y [n, d]; writes weight * Q(y) into `image` [n, d]."""
        value = 0.0
        for part in spans(len(y), max(1, CACHED // y.shape[1])):
            rows = y[part].float()
            levels, scale = self.quantizer.levels(rows)
            quantized = levels.mul_(scale)
            error = rows.sub_(quantized).square_().sum(1, dtype=torch.float64)
            value += float((error * weight[part]).sum())
            image[part] = quantized.mul_(weight[part, None])
        return value

    def direction(self, iterate: Tensor, product: Tensor) -> Tensor:
        """The skew matrix V [d, d] that rotates `iterate` towards polar(product); product: C of `measure`."""
        crossed = self.tiles.matmul(product, iterate.T.contiguous())

        def tile(part: slice) -> Tensor:
            return (crossed[part] - crossed[:, part].T) / (self.spectrum[part, None] + self.spectrum)

        return torch.cat(self.tiles.each(tile, _square_spans(crossed)))

    def rotate(self, iterate: Tensor, skew: Tensor) -> Tensor:
        """exp(skew) iterate, orthogonal to about 1e-6: to second order, then Newton-Schulz steps."""
        small, factor = skew.to(self.dtype), iterate.to(self.dtype)
        first = self.tiles.matmul(small, factor)
        second = self.tiles.matmul(small, first)
        rotated = iterate + first + second.mul_(0.5)
        for _ in range(NEWTON_SCHULZ_STEPS):
            gap = self.tiles.matmul(rotated.T.contiguous(), rotated).neg_()
            gap.diagonal().add_(1.0)
            largest = self.tiles.ranks.broadcast(float(gap.square().sum(1).max().sqrt()))
            rotated += self.tiles.matmul(rotated.to(self.dtype), gap.to(self.dtype)).mul_(0.5)
            if largest < NEARLY_ORTHOGONAL:
                break
        return rotated


def _square_spans(matrix: Tensor) -> list[slice]:
    """Tiles of the rows of matrix [d, d]."""
    return spans(len(matrix), square_tile_rows(len(matrix)))


def largest_angle(skew: Tensor, steps: int = POWER_STEPS) -> float:
    """An estimate of the spectral norm of a skew matrix [d, d] (its largest angle, radians), by power iteration."""
    vector = torch.cos(torch.arange(len(skew), dtype=torch.float32) * GOLDEN_ANGLE)
    norm = 0.0
    for _ in range(steps):
        vector = skew @ (vector / vector.norm().clamp_min(1e-30))
        norm = float(vector.norm())
    return norm


def cap_angle(skew: Tensor) -> Tensor:
    """`skew` [d, d], scaled down in place so that no step rotates by more than MAX_ANGLE."""
    angle = largest_angle(skew)
    return skew.mul_(MAX_ANGLE / angle) if angle > MAX_ANGLE else skew
