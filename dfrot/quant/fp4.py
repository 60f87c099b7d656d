"""Arithmetic of NVFP4 and MXFP4: the scales of groups, and rounding of activations.

NVFP4: scale = E4M3(shared * peak / 6), value = E2M1 * scale / shared, with one float32 `shared` per tensor that brings
the largest scale to the end of E4M3's range. MXFP4: scale = 2^(floor(log2 peak) - 2), the exponent one higher where
the mantissa of the peak is at least 1.75, which the largest code would otherwise clip (as compressed-tensors has it).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot.number_formats import E2M1, E4M3, exponents
from dfrot.quant.scheme import FP4_GROUPS, NVFP4

ROOM = 256.0
"""The scale of a tensor's largest group where groups may choose larger scales than that of their peak (Four over Six,
arXiv 2512.02010)."""
_MANTISSA, _UP = 23, 1 << 21  # of float32; what carries a mantissa of 1.75 into the exponent
_LARGEST_EXPONENT = 2  # of E2M1: 4 <= 6 < 8


def shared_scale(peak: Tensor, largest: float = E4M3.largest) -> Tensor:
    """The float32 scale [1] of a tensor whose largest magnitude is `peak` float32: its group gets the scale `largest`.
    1 where the tensor is zero."""
    scale = largest * E2M1.largest / peak.float().reshape(1)
    return torch.where(torch.isfinite(scale), scale, torch.ones_like(scale))


def group_peaks(x: Tensor, group: int) -> Tensor:
    """x [..., K], K a multiple of `group` -> largest magnitudes float32 [..., K / group]."""
    return x.float().reshape(*x.shape[:-1], -1, group).abs().amax(-1)


def wanted_scales(peaks: Tensor, shared: Tensor, top: float = E2M1.largest) -> Tensor:
    """NVFP4 scales before they are rounded to E4M3, which map `peaks` to the code of value `top`."""
    return shared * (peaks / top)


def peak_exponents(peaks: Tensor) -> Tensor:
    """The MXFP4 exponents uint8 of groups with these peaks float32."""
    stored = (peaks.contiguous().view(torch.int32) + _UP) >> _MANTISSA
    return (stored - _LARGEST_EXPONENT).clamp_(min=0).to(torch.uint8)


def round_groups(x: Tensor, number_format: str, shared: float | None) -> Tensor:
    """Activations [..., K] rounded to FP4 and back, float32. shared: the constant scale of an NVFP4 input.

    What a scale of E4M3 cannot reach is clipped, and a group whose scale is below the smallest one becomes zero."""
    group = FP4_GROUPS[number_format]
    peaks = group_peaks(x, group)
    if number_format == NVFP4:
        assert shared is not None
        constant = torch.tensor([shared], dtype=torch.float32)
        steps = E4M3.round(wanted_scales(peaks, constant)) / constant
    else:
        steps = exponents(peak_exponents(peaks)).masked_fill_(torch.isnan(peaks), torch.nan)
    steps = steps.unsqueeze(-1)
    groups = x.float().reshape(*x.shape[:-1], -1, group)
    return E2M1.round(groups / torch.where(steps == 0, 1.0, steps)).mul_(steps).flatten(-2)
