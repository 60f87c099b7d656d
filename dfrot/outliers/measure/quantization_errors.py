"""What 4 bits do to activations, weights and KV of a block: relative squared errors, as stored and after a Hadamard.

`relative` is |x - Q(x)|^2 / |x|^2. `output` weights the error by the linears that read it,
|W (x - Q(x))|^2 / |W x|^2: this is what the next computation sees, and what layers and taps are ranked by.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.quant.activations import fake_quantize, fake_quantize_kv
from dfrot.rotation.hadamard import hadamard_plan

BITS = 4
CHUNK = 1024  # rows of a weight per step: bounds the temporaries
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8)
TINY = 1e-300  # below any sum of squares: keeps quotients finite


def to_hadamard_basis(rows: Tensor, block: int | None = None) -> Tensor:
    """rows [n, K] in the Hadamard basis, float32, in blocks of `block` columns (None: the widest possible)."""
    return hadamard_plan(rows.shape[-1], block).apply(rows.float().contiguous())


def from_hadamard_basis(rows: Tensor, block: int | None) -> Tensor:
    """The inverse of `to_hadamard_basis`, through the transpose of its matrix."""
    spec = hadamard_plan(rows.shape[-1], block)
    base = spec.base().T.contiguous()
    out: Tensor = torch.ops.dfq.hadamard(rows.contiguous(), base, spec.block)
    return out


def activation_errors(
    rows: Tensor, massive: Tensor, weights: list[Tensor], gain: Tensor | None, block: int | None, with_hadamard: bool
) -> dict[str, Any]:
    """Errors of a tap by basis (`none`: as stored, `hadamard`), JSON.

    rows [n, K]: its inputs; massive bool [n]; weights [N, K]: of the linears that read it; gain [K]: of the norm before
    it, folded into the weights before a rotation as `dfq rotate` does; block: columns per Hadamard block, None for the
    widest; with_hadamard: measure that basis too (not for checkpoints that are rotated already)."""
    exact = _output_energy(rows, weights)
    errors: dict[str, Any] = {}
    for name in _bases(with_hadamard):
        if name == "none":
            rotated = rows
        else:
            rotated = to_hadamard_basis(rows if gain is None else rows / _nonzero(gain), block)
        own_basis_error = error = fake_quantize(rotated, BITS, False) - rotated
        if name == "hadamard":
            own_basis_error = from_hadamard_basis(error, block) * (1.0 if gain is None else gain)
        per_token = error.double().square().sum(1)
        common = rotated[~massive]
        by_clip = {clip: _energy(fake_quantize(common, BITS, False, clip) - common) for clip in CLIPS}
        common_output = _output_energy(own_basis_error[~massive], weights)
        errors[name] = {
            "best_clip": min(CLIPS, key=lambda clip: by_clip[clip]),
            "relative": float(per_token.sum()) / max(_energy(rotated), TINY),
            "common": float(per_token[~massive].sum()) / max(_energy(common), TINY),
            "massive_share": float(per_token[massive].sum() / per_token.sum().clamp_min(TINY)),
            "output": common_output / max(_output_energy(rows[~massive], weights), TINY),
            "output_all": _output_energy(own_basis_error, weights) / max(exact, TINY),
        }
    return errors


def weight_errors(
    weight: Tensor, rows: Tensor, gain: Tensor | None, block: int | None, with_hadamard: bool
) -> dict[str, Any]:
    """Errors of rounding weight [N, K] to 4 bits per output channel without clip search, by basis, JSON.

    rows [n, K]: inputs that weight the output error; gain, block, with_hadamard: as of `activation_errors`."""
    rows = rows.float()
    rotated_rows = rows
    if with_hadamard:
        rotated_rows = to_hadamard_basis(rows / _nonzero(gain) if gain is not None else rows, block)
    names = _bases(with_hadamard)
    sums = {name: [0.0, 0.0, 0.0] for name in names}  # |E|^2, |W|^2, |x E|^2
    exact = 0.0
    for part in torch.split(weight, CHUNK):
        part = part.float()
        exact += _energy(rows @ part.T)
        for name in names:
            rotated, inputs = part, rows
            if name == "hadamard":
                rotated, inputs = to_hadamard_basis(part * gain if gain is not None else part, block), rotated_rows
            error = fake_quantize(rotated, BITS, True) - rotated
            for i, value in enumerate((_energy(error), _energy(rotated), _energy(inputs @ error.T))):
                sums[name][i] += value
    return {
        name: {"relative": error / max(energy, TINY), "output": output / max(exact, TINY)}
        for name, (error, energy, output) in sums.items()
    }


def kv_errors(x: Tensor, massive: list[int], with_hadamard: bool) -> dict[str, Any]:
    """4-bit errors per token and head of keys or values x [heads, S, D], by basis, and the best clip ratio, JSON.

    massive: positions of massive tokens, which `relative` leaves out; `massive_share`: their share of the error."""
    mask = torch.zeros(x.shape[1], dtype=torch.bool)
    mask[massive] = True
    errors: dict[str, Any] = {}
    for name in _bases(with_hadamard):
        rotated = x.float()
        if name == "hadamard":
            rotated = to_hadamard_basis(x.reshape(-1, x.shape[-1]).float()).view(x.shape)
        squares = {clip: (fake_quantize_kv(rotated, BITS, False, clip) - rotated).double().square() for clip in CLIPS}
        per_token = squares[1.0].sum((0, 2))
        by_clip = {
            str(clip): float(part[:, ~mask].sum()) / max(_energy(rotated[:, ~mask]), TINY)
            for clip, part in squares.items()
        }
        errors[name] = {
            "relative": by_clip["1.0"],
            "massive_share": float(per_token[mask].sum() / per_token.sum().clamp_min(TINY)),
            "by_clip": by_clip,
            "best_clip": float(min(by_clip, key=lambda clip: by_clip[clip])),
        }
    return errors


def _bases(with_hadamard: bool) -> tuple[str, ...]:
    return ("none", "hadamard") if with_hadamard else ("none",)


def _energy(x: Tensor) -> float:
    """Sum of squares, in float64."""
    return float(x.double().square().sum())


def _nonzero(gain: Tensor) -> Tensor:
    """A gain to divide by: zeros become 1."""
    return torch.where(gain == 0, torch.ones_like(gain), gain)


def _output_energy(rows: Tensor, weights: list[Tensor]) -> float:
    """Sum of squares of what the weights make of rows."""
    return sum(_energy(rows.float() @ weight.float().T) for weight in weights)
