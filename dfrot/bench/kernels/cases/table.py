"""Every operator that the bench can feed. An operator enters the bench by a builder and one line here."""

from __future__ import annotations

from dfrot.bench.kernels.case import Builder
from dfrot.bench.kernels.cases import fused, kv_cache, prepared, products, rows

# name in torch.ops.dfq -> builder of its Case
BUILDERS: dict[str, Builder] = {
    "w4a16_mm": products.w4a16_mm,
    "w8a16_mm": products.w8a16_mm,
    "w4a8_mm": products.integer_product("w4a8_mm", 8),
    "w4a4_mm": products.integer_product("w4a4_mm", 4),
    "hadamard": rows.hadamard,
    "quantize_per_token": rows.quantize_per_token,
    "hadamard_quantize": fused.hadamard_quantize,
    "rmsnorm_quantize": fused.rmsnorm_quantize,
    "silu_mul_hadamard_quantize": fused.silu_mul_hadamard_quantize,
    "kv_attention": kv_cache.kv_attention,
    "w4a16_tiled_mm": prepared.w4a16_tiled_mm,
    "w4a8_tiled_mm": prepared.w4a8_tiled_mm,
}
# Sizes that an operator does not have: it is measured once however many of them are asked for.
UNUSED_SIZES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("hadamard", "quantize_per_token"), ("n", "group")),
    **dict.fromkeys(("hadamard_quantize", "rmsnorm_quantize", "silu_mul_hadamard_quantize"), ("n", "group")),
    "kv_attention": ("n", "k", "group"),
}
