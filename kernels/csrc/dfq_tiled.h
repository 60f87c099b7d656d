// Products with prepacked 4-bit weights; conventions of dfq_kernels.h. The layout is described in cpu/tile16/tile16_kernels.h.
//
// With n16 = n rounded up to 16 and k8 = k rounded up to 8: tiles uint8 [n16 / 16, k8 / 8, 64], scale bfloat16 bits
// [groups, n16], zero [groups, n16] or null (8), sums int32 [groups, n16] (sum of the codes of each group).
// group: columns per scale, a multiple of 8; 0 = one scale per row. k at most 2^19. bias float32 [n] or null.
#pragma once

#include "dfq_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// packed [n, ceil(k / 2)] -> tiles and, unless null, sums; and back.
DFQ_API int dfq_prepack(const uint8_t* packed, int64_t n, int64_t k, int64_t group, uint8_t* tiles, int32_t* sums,
                        int64_t threads);
DFQ_API int dfq_unprepack(const uint8_t* tiles, int64_t n, int64_t k, uint8_t* packed, int64_t threads);

// out [m, n] = x [m, k] w[n, k]^T + bias: float32 sums, cast once to the dtype of x.
DFQ_API int dfq_tiled_w4a16(const void* x, int64_t dtype, int64_t m, int64_t n, int64_t k, const uint8_t* tiles,
                            const uint16_t* scale, const uint8_t* zero, int64_t group, const float* bias, void* out,
                            int64_t threads);

// out[m, n] of `dtype` = the float32 of dfq_w4a8_mm + bias, cast once. x_zero null: 0; otherwise sums must be given.
DFQ_API int dfq_tiled_w4a8(const int8_t* q, const float* x_scale, const int32_t* x_zero, int64_t m, int64_t n,
                           int64_t k, const uint8_t* tiles, const uint16_t* scale, const uint8_t* zero,
                           const int32_t* sums, int64_t group, const float* bias, int64_t dtype, void* out,
                           int64_t threads);

#ifdef __cplusplus
}
#endif
