"""Schemas, checks and shapes of `pack`, `unpack`, `dequantize`."""

from __future__ import annotations

import torch
from torch import Tensor

from dfrot_kernels.ops import checks

PACK = "(Tensor codes, int bits) -> Tensor"
UNPACK = "(Tensor packed, int bits, int k) -> Tensor"
DEQUANTIZE = "(Tensor packed, Tensor scale, Tensor? zero, int bits, int k, int group) -> Tensor"


def check_pack(codes: Tensor, bits: int) -> None:
    """Raises ValueError for arguments that `pack` refuses."""
    checks.bits_ok("pack", bits)
    checks.matrix("pack", "codes", codes, (torch.uint8,))


def check_unpack(packed: Tensor, bits: int, k: int) -> None:
    """Raises ValueError for arguments that `unpack` refuses."""
    checks.bits_ok("unpack", bits)
    checks.matrix("unpack", "packed", packed, (torch.uint8,))
    checks.row_bytes("unpack", packed, k, bits)


def check_dequantize(packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, k: int, group: int) -> None:
    """Raises ValueError for arguments that `dequantize` refuses."""
    checks.bits_ok("dequantize", bits)
    checks.weight("dequantize", k, packed, scale, zero, group, bits)


def pack_shape(codes: Tensor, bits: int) -> Tensor:
    """Empty outputs of `pack`."""
    return codes.new_empty(codes.shape[0], (codes.shape[1] * bits + 7) // 8)


def unpack_shape(packed: Tensor, bits: int, k: int) -> Tensor:
    """Empty outputs of `unpack`."""
    return packed.new_empty(packed.shape[0], k)


def dequantize_shape(packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, k: int, group: int) -> Tensor:
    """Empty outputs of `dequantize`."""
    return packed.new_empty(packed.shape[0], k, dtype=torch.float32)
