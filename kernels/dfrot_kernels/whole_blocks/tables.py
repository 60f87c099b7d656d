"""The tables that native calls on whole blocks read: words of C structs, and the tensors whose addresses they hold."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels import abi, native


def need_library(what: str) -> None:
    """Raises RuntimeError unless the native library is loaded. what: who needs it."""
    if not native.active():
        raise RuntimeError(f"{what}: no native library: {native.status()}")


def table(rows: list[list[int]]) -> Tensor:
    """int64 [rows, words]: C structs one behind the other, for a call that takes their address."""
    return torch.tensor(rows, dtype=torch.int64)


def transform(prefix: str, base_t: int, order: int, block: int) -> dict[str, int]:
    """The fields of a struct that describe a Hadamard transform: address of the transposed base, its order, block."""
    return {f"{prefix}base_t": base_t, f"{prefix}order": order, f"{prefix}block": block}


def empty(struct: str) -> list[int]:
    """The words of a struct whose fields are all 0 or null."""
    return [0] * abi.word_count(struct)


class Held:
    """Tensors that live as long as this object, by their addresses."""

    def __init__(self, what: str) -> None:
        """what: who holds them, for error messages."""
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
