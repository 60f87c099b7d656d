"""What 4 bits do to activations, weights and KV of a block: relative squared errors, as stored and after a Hadamard.

`relative` is |x - Q(x)|^2 / |x|^2; `output` weighs the error by the weights that read it, |W (x - Q(x))|^2 / |W x|^2:
the second is what the next computation sees, and what layers and taps are ranked by.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfrot.quant.activations import fake_quantize, fake_quantize_kv
from dfrot.rotation.hadamard import plan

BITS = 4
CHUNK = 1024  # rows of a weight per step: bounds the temporaries
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8)


def to_hadamard_basis(rows: Tensor, block: int | None = None) -> Tensor:
    """rows [n, K] in the Hadamard basis, blocks of `block` (None: the widest known)."""
    return plan(rows.shape[-1], block).apply(rows.float().contiguous())


def _energy(x: Tensor) -> float:
    return float(x.double().square().sum())


def from_hadamard_basis(rows: Tensor, block: int | None) -> Tensor:
    """The inverse of `to_hadamard_basis`, by its matrix' transpose where it is not symmetric."""
    spec = plan(rows.shape[-1], block)
    base = spec.base().T.contiguous()
    out: Tensor = torch.ops.dfq.hadamard(rows.contiguous(), base, spec.block)
    return out


def activation_errors(
    rows: Tensor, massive: Tensor, weights: list[Tensor], gain: Tensor | None, block: int | None, basis: bool
) -> dict[str, Any]:
    """rows [n, K] of a tap, massive bool [n], the weights [N, K] that read it. gain: of the norm before it, folded
    into the weights before a rotation as `dfq rotate` does. basis: False leaves out the Hadamard (rotated already)."""
    exact = _outputs(rows, weights)
    found: dict[str, Any] = {}
    for name in ("none", "hadamard") if basis else ("none",):
        turned = rows if name == "none" else to_hadamard_basis(rows if gain is None else rows / _safe(gain), block)
        lost = error = fake_quantize(turned, BITS, False) - turned
        if name == "hadamard":
            lost = from_hadamard_basis(error, block) * (1.0 if gain is None else gain)
        part = error.double().square().sum(1)
        clips = {clip: _energy(fake_quantize(turned[~massive], BITS, False, clip) - turned[~massive]) for clip in CLIPS}
        found[name] = {
            "best_clip": min(CLIPS, key=lambda clip: clips[clip]),
            "relative": float(part.sum()) / max(_energy(turned), 1e-300),
            "common": float(part[~massive].sum()) / max(_energy(turned[~massive]), 1e-300),
            "massive_share": float(part[massive].sum() / part.sum().clamp_min(1e-300)),
            "output": _outputs(lost[~massive], weights) / max(_outputs(rows[~massive], weights), 1e-300),
            "output_all": _outputs(lost, weights) / max(exact, 1e-300),
        }
    return found


def _safe(gain: Tensor) -> Tensor:
    return torch.where(gain == 0, torch.ones_like(gain), gain)


def _outputs(rows: Tensor, weights: list[Tensor]) -> float:
    return sum(_energy(rows.float() @ weight.float().T) for weight in weights)


def weight_errors(weight: Tensor, rows: Tensor, gain: Tensor | None, block: int | None, basis: bool) -> dict[str, Any]:
    """Rounding weight [N, K] to 4 bits per output channel (no clip search); rows [n, K] weigh the output error."""
    rows = rows.float()
    turned_rows = to_hadamard_basis(rows / _safe(gain) if gain is not None else rows, block) if basis else rows
    names = ("none", "hadamard") if basis else ("none",)
    sums = {name: [0.0, 0.0, 0.0] for name in names}  # |E|^2, |W|^2, |x E|^2
    exact = 0.0
    for part in torch.split(weight, CHUNK):
        part = part.float()
        exact += _energy(rows @ part.T)
        for name in names:
            turned, seen = part, rows
            if name == "hadamard":
                turned, seen = to_hadamard_basis(part * gain if gain is not None else part, block), turned_rows
            error = fake_quantize(turned, BITS, True) - turned
            for i, value in enumerate((_energy(error), _energy(turned), _energy(seen @ error.T))):
                sums[name][i] += value
    return {
        name: {"relative": error / max(size, 1e-300), "output": out / max(exact, 1e-300)}
        for name, (error, size, out) in sums.items()
    }


def kv_errors(x: Tensor, massive: list[int], rotate: bool) -> dict[str, Any]:
    """Keys or values [heads, S, D]: 4-bit error per token and head, and the clip ratio that makes it smallest.

    Massive tokens are left out of `relative` and told as a share of the whole error."""
    flag = torch.zeros(x.shape[1], dtype=torch.bool)
    flag[massive] = True
    found: dict[str, Any] = {}
    for name in ("none", "hadamard") if rotate else ("none",):
        turned = (
            to_hadamard_basis(x.reshape(-1, x.shape[-1]).float()).view(x.shape) if name == "hadamard" else x.float()
        )
        parts = {clip: (fake_quantize_kv(turned, BITS, False, clip) - turned).double().square() for clip in CLIPS}
        plain = parts[1.0].sum((0, 2))
        errors = {
            str(clip): float(part[:, ~flag].sum()) / max(_energy(turned[:, ~flag]), 1e-300)
            for clip, part in parts.items()
        }
        found[name] = {
            "relative": errors["1.0"],
            "massive_share": float(plain[flag].sum() / plain.sum().clamp_min(1e-300)),
            "by_clip": errors,
            "best_clip": float(min(errors, key=lambda clip: errors[clip])),
        }
    return found
