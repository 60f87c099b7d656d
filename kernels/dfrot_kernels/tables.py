"""The tables that native calls on whole models read: 64-bit words, and the tensors whose addresses they hold."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from dfrot_kernels import native


def word(value: float) -> int:
    """The bits of a float64 as int64."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def check_words(function: str, needed: Sequence[int]) -> None:
    """Raises RuntimeError unless the library's structs, whose sizes `function` tells, have `needed` words each; so it
    does without a library."""
    if not native.active():
        raise RuntimeError(f"{function}: no native library: {native.status()}")
    sizes = torch.zeros(len(needed), dtype=torch.int64)
    native.call(function, *(sizes[i : i + 1] for i in range(len(needed))))
    if sizes.tolist() != list(needed):
        raise RuntimeError(f"{function}: libdfq_cpu and this package disagree about its tables: install dfq again")


class Held:
    """Tensors that live as long as this object, by their addresses."""

    def __init__(self, what: str) -> None:
        self.what, self._tensors = what, list[Tensor]()

    def address(self, tensor: Tensor | None) -> int:
        """Of a tensor as it is; 0 for None. Raises ValueError unless it is contiguous CPU memory."""
        if tensor is None:
            return 0
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            where = f"{tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{self.what}: an operand {where} is not contiguous CPU memory")
        self._tensors.append(tensor)
        return tensor.data_ptr()

    def float32(self, tensor: Tensor | None) -> int:
        """Of a float32 copy, or of the tensor where it is one; 0 for None."""
        return self.address(None if tensor is None else tensor.detach().to(torch.float32).contiguous())
