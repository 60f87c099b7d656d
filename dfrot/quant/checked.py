"""What a packed weight that was read from a file must satisfy before it is used."""

from __future__ import annotations

import torch

from dfrot.errors import InputError
from dfrot_kernels.layouts import PackedWeight


def check_packed_weight(weight: PackedWeight, name: str) -> None:
    """Raise InputError for scales that are no numbers and zero codes beyond the bits, naming the tensor of module
    `name`."""
    if not bool(torch.isfinite(weight.scale).all()):
        tensor = f"{name}.weight_scale"
        raise InputError(f"tensor {tensor} holds NaN or Inf; the checkpoint is damaged, make it again", tensor=tensor)
    if weight.zero is not None and weight.zero.numel() and int(weight.zero.max()) >= 2**weight.bits:
        tensor = f"{name}.weight_zero"
        raise InputError(f"tensor {tensor} holds codes beyond {weight.bits} bits; make it again", tensor=tensor)
