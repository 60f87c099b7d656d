"""The buffers of a packed weight in a module, and what they must satisfy once they were read from a file."""

from __future__ import annotations

import torch
from torch import nn

from dfrot.errors import InputError
from dfrot.quant.plan import LinearPlan, packed_tensors
from dfrot_kernels.layouts import PackedWeight


def register_packed_weight(module: nn.Module, plan: LinearPlan) -> None:
    """Give a module the tensors of `packed_tensors` as buffers without values; None for what its plan lacks."""
    module.register_buffer("weight_zero", None)
    module.register_buffer("weight_second", None)
    for name, (dtype, shape) in packed_tensors(plan).items():
        module.register_buffer(name.rpartition(".")[2], torch.empty(shape, dtype=dtype))


def check_packed_weight(weight: PackedWeight, name: str) -> None:
    """Raise InputError for scales that are no numbers and zero codes beyond the bits, naming the tensor of module
    `name`."""
    if not bool(torch.isfinite(weight.scale).all()):
        tensor = f"{name}.weight_scale"
        raise InputError(f"tensor {tensor} holds NaN or Inf; the checkpoint is damaged, make it again", tensor=tensor)
    if weight.zero is not None and weight.zero.numel() and int(weight.zero.max()) >= 2**weight.bits:
        tensor = f"{name}.weight_zero"
        raise InputError(f"tensor {tensor} holds codes beyond {weight.bits} bits; make it again", tensor=tensor)
