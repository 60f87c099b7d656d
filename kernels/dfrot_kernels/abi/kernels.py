"""The C interface of the kernels on tensors. Arrays are dense and row-major."""

from __future__ import annotations

from dfrot_kernels.abi.types import Function, function

_WEIGHT = "const uint8_t* packed, const uint16_t* scale, const uint8_t* zero?"
_TILES = "const uint8_t* tiles, const uint16_t* scale, const uint8_t* zero?"
_CODES = "int8_t* codes, float* scale, int32_t* zero"
_STORES = (
    "uint8_t* k_packed, uint16_t* k_scale, uint8_t* k_zero?, uint8_t* v_packed, uint16_t* v_scale, uint8_t* v_zero?"
)
_TRANSFORM = "const float* base?, int64_t order, int64_t block"
_RANGE = "int64_t bits, int64_t symmetric, double clip"

ROWS = (
    function(
        "dfq_pack",
        "const uint8_t* codes, int64_t n, int64_t k, int64_t bits, uint8_t* packed",
        "codes [n, k], each below 2^bits -> packed [n, ceil(k bits / 8)]; bits 2..8.",
    ),
    function(
        "dfq_unpack",
        "const uint8_t* packed, int64_t n, int64_t k, int64_t bits, uint8_t* codes",
        "The inverse of dfq_pack.",
    ),
    function(
        "dfq_quantize_per_token",
        f"const void* x, int64_t dtype, int64_t m, int64_t k, {_RANGE}, {_CODES}",
        "x [m, k] -> codes [m, k], scale [m], zero [m]: x = scale * (q - zero). A row with NaN or Inf: scale NaN, "
        "codes 0.",
    ),
    function(
        "dfq_hadamard",
        "const void* x, int64_t dtype, int64_t rows, int64_t block, const float* base, int64_t order, void* out",
        "out = x (base (x) Sylvester(block / order)) / sqrt(block) for each of `rows` rows of `block` values.",
    ),
    function(
        "dfq_kv_quantize",
        f"const void* x, int64_t dtype, int64_t rows, int64_t width, {_RANGE}, uint8_t* packed, uint16_t* scale, "
        "uint8_t* zero",
        "Each row of x [rows, width] -> packed unsigned codes, float16 scale, zero (2^(bits-1) when symmetric).",
    ),
    function(
        "dfq_kv_dequantize",
        f"{_WEIGHT}, int64_t rows, int64_t width, int64_t bits, int64_t dtype, void* out",
        "The inverse of dfq_kv_quantize up to rounding; zero null: 2^(bits-1).",
    ),
    function(
        "dfq_hadamard_quantize",
        f"const void* x, int64_t dtype, int64_t m, int64_t k, {_TRANSFORM}, {_RANGE}, {_CODES}",
        "Codes as dfq_quantize_per_token gives them, of rows that are rotated first. base null: no transform, else "
        "[order, order] of the Hadamard transform in blocks of `block`, computed in float32 and not rounded.",
    ),
    function(
        "dfq_rmsnorm_quantize",
        "const void* x, int64_t dtype, int64_t m, int64_t k, void* residual?, const void* weight?, double epsilon, "
        f"{_RANGE}, {_CODES}",
        "Codes of residual += x (residual null: x), divided by its root mean square, times weight [k] (null: 1); "
        "every step is rounded to dtype, the type of x, residual and weight.",
    ),
    function(
        "dfq_silu_mul_hadamard_quantize",
        f"const void* gate, const void* up, int64_t dtype, int64_t m, int64_t k, {_TRANSFORM}, {_RANGE}, {_CODES}",
        "Codes of silu(gate) * up, both [m, k], rounded to dtype after each of the two steps, rotated as in "
        "dfq_hadamard_quantize.",
    ),
)

CANONICAL = (
    function(
        "dfq_dequantize",
        f"{_WEIGHT}, int64_t n, int64_t k, int64_t bits, int64_t group, float* w",
        "w[n, k] = scale * (u - zero): scale bfloat16 bits [n, groups], zero [n, groups] or null (2^(bits-1)); "
        "group: columns per scale, 0 = one scale per row.",
    ),
    function(
        "dfq_w4a16_mm",
        f"const void* x, int64_t dtype, int64_t m, int64_t n, int64_t k, {_WEIGHT}, int64_t group, void* out",
        "out [m, n] = x [m, k] w[n, k]^T with 4-bit w as in dfq_dequantize; float32 sums; out has the dtype of x.",
    ),
    function(
        "dfq_w4a8_mm",
        "const int8_t* q, const float* x_scale, const int32_t* x_zero, int64_t m, int64_t n, int64_t k, "
        f"{_WEIGHT}, int64_t group, float* out",
        "out[m, n] = x_scale[m] sum_g scale[n, g] sum_{k in g} (q[m, k] - x_zero[m]) (u[n, k] - zero[n, g]): exact "
        "integer sums per group, groups added in order; k at most 2^19. The range of q is measured: narrow codes "
        "are multiplied faster, whatever their nominal width.",
    ),
)

TILE16 = (
    function(
        "dfq_prepack",
        "const uint8_t* packed, int64_t n, int64_t k, int64_t group, uint8_t* tiles, int32_t* sums?",
        "packed [n, ceil(k / 2)] -> tiles [n16 / 16, k8 / 8, 64] (cpu/tile16/tile16_kernels.h) and, unless null, "
        "sums [groups, n16] of the codes of each group. n16: n rounded up to 16, k8: k rounded up to 8.",
    ),
    function(
        "dfq_unprepack",
        "const uint8_t* tiles, int64_t n, int64_t k, uint8_t* packed",
        "The inverse of dfq_prepack.",
    ),
    function(
        "dfq_tiled_w4a16",
        f"const void* x, int64_t dtype, int64_t m, int64_t n, int64_t k, {_TILES}, int64_t group, const float* bias?, "
        "void* out",
        "out [m, n] = x [m, k] w[n, k]^T + bias [n]: float32 sums, cast once to the dtype of x. scale bfloat16 bits "
        "[groups, n16], zero [groups, n16] or null (8); group: a multiple of 8, 0 = one scale per row; k at most "
        "2^19.",
    ),
    function(
        "dfq_tiled_w4a8",
        "const int8_t* q, const float* x_scale, const int32_t* x_zero?, int64_t m, int64_t n, int64_t k, "
        f"{_TILES}, const int32_t* sums?, int64_t group, const float* bias?, int64_t dtype, void* out",
        "out[m, n] of `dtype` = the float32 of dfq_w4a8_mm + bias, cast once. x_zero null: 0; otherwise sums must "
        "be given. Weights as in dfq_tiled_w4a16.",
    ),
)

DENSE = (
    function(
        "dfq_dense",
        "const void* x, int64_t dtype, int64_t m, int64_t n, int64_t k, const void* weight, int64_t kind, "
        "const uint16_t* scale?, int64_t group, void* out",
        "out [m, n] = x [m, k] w[n, k]^T, both of `dtype`; float32 sums, and every row has the bits that it has alone. "
        "w is of float32 or bfloat16 like x (kind: dtype), or one byte a code (kind: DFQ_CODES8) with zero point 128 "
        "and scale bfloat16 [n, groups]; group: columns per scale, a multiple of 16, 0 = one scale per row. For a few "
        "rows: the weight is read once for every 16 of them.",
    ),
)

ATTENTION = (
    function(
        "dfq_kv_append",
        "const void* key, const void* value, int64_t dtype, int64_t batch, int64_t rows, int64_t heads, int64_t k_dim, "
        f"int64_t v_dim, {_STORES}, int64_t position, {_RANGE}, {_TRANSFORM}, const float* shift?",
        "key [batch, rows, heads, k_dim], value [batch, rows, heads, v_dim] -> positions `position` and on of the "
        "cache of one layer, in place: codes [positions, batch, heads, bytes], scale and zero [positions, batch, "
        "heads] as dfq_kv_quantize writes them (zero null: symmetric). Keys are rotated in float32 by R3: base "
        "null, or [order, order] of the Hadamard transform in blocks of `block`. Then shift [heads, k_dim], if any, is "
        "subtracted from them in float32.",
    ),
    function(
        "dfq_kv_attention",
        "const void* query, int64_t dtype, int64_t batch, int64_t rows, int64_t heads, int64_t kv_heads, "
        "int64_t k_dim, int64_t v_dim, "
        + ", ".join(part if part.startswith("const ") else f"const {part}" for part in _STORES.split(", "))
        + f", int64_t length, int64_t bits, double scaling, {_TRANSFORM}, const int64_t* first?, const uint8_t* tree?, "
        "int64_t trees, const void* k_sink?, const void* v_sink?, int64_t sinks, const int64_t* sink_start?, void* out",
        "query [batch, rows, heads, k_dim] at the last `rows` (at most 64) of `length` positions -> out [batch, "
        "rows, heads, v_dim] = softmax(scaling q k^T) v. Row r of sequence b sees the positions from first[b, r] "
        "(null: 0) to length - rows - 1, and the new ones that tree [trees, rows, rows] shows it (null: those up to "
        "itself; trees 1 or batch). The `sinks` positions from sink_start[b] (null: 0) on are read from k_sink, "
        "v_sink [sinks, batch, kv_heads, dim], of the query's dtype and rotated like the stored keys. k_dim and "
        "v_dim at most 512.",
    ),
    function(
        "dfq_prompt_attention",
        "const void* query, int64_t dtype, int64_t batch, int64_t rows, int64_t heads, int64_t kv_heads, "
        "int64_t k_dim, int64_t v_dim, "
        + ", ".join(part if part.startswith("const ") else f"const {part}" for part in _STORES.split(", "))
        + ", int64_t length, int64_t bits, double scaling, int64_t window, const void* k_sink?, const void* v_sink?, "
        "int64_t sinks, void* out",
        "query [batch, rows, heads, k_dim], rotated like the stored keys, at the last `rows` (any number) of `length` "
        "positions -> out [batch, rows, heads, v_dim] = softmax(scaling q k^T) v. A row sees the last `window` "
        "positions up to its own (0: all). The first `sinks` positions are read from k_sink, v_sink [sinks, batch, "
        "kv_heads, dim], of the query's dtype. k_dim and v_dim at most 512.",
    ),
)

KERNELS: tuple[Function, ...] = ROWS + CANONICAL + TILE16 + DENSE + ATTENTION
