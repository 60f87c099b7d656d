"""GGUF blocks decode to our weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dfrot.export.float16_scales import Float16Rounding
from dfrot.export.gguf.blocks import pack_blocks
from dfrot.export.targets import GGUF
from dfrot_kernels.layouts import PackedWeight

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("storage", GGUF.storages, ids=lambda storage: storage.name)
@pytest.mark.parametrize("group", [0, 32, 64])
def test_blocks_decode_to_our_weights_bit_for_bit(storage: Any, group: int) -> None:
    """The public decoder of the format, on random codes and bfloat16 scales. Asymmetric offsets m = -zero scale may
    have more bits than float16: within its rounding."""
    generator = torch.Generator().manual_seed(storage.bits + group)
    n, k = 24, 192
    top = 2**storage.bits
    codes = torch.randint(0, top, (n, k), dtype=torch.uint8, generator=generator)
    groups = k // group if group else 1
    signs = torch.randint(0, 2, (n, groups), generator=generator) * 2 - 1
    scale = ((torch.rand(n, groups, generator=generator) * 0.2 + 2.0**-17) * signs).bfloat16()
    zero = None
    if not storage.symmetric:
        zero = torch.randint(0, top, (n, groups), dtype=torch.uint8, generator=generator)
    weight = PackedWeight.from_codes(codes, scale, zero, storage.bits, group)
    rounding = Float16Rounding()
    raw = pack_blocks(weight, storage, rounding, "w").numpy()
    kind = getattr(gguf.GGMLQuantizationType, storage.name)
    decoded = torch.from_numpy(gguf.quants.dequantize(raw, kind))
    ours = weight.dequantize(torch.float32)
    if storage.symmetric:
        assert rounding.rounded == 0
        assert torch.equal(decoded, ours)
    else:
        most = scale.float().max() * top * 2.0**-11
        assert (decoded - ours).abs().max() <= most
