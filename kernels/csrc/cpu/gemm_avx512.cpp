// AVX-512 (VNNI, BF16, VBMI): products of the tile16 family with many rows. Blocks of 6 rows times 4 tiles: 24 sums in
// registers, four loads of the weight and six broadcasts for 24 multiply-adds.
#include <immintrin.h>

#include <cstring>

#include "../dfq_kernels.h"
#include "gemm.h"

namespace dfq {
namespace {

constexpr int HEIGHT = 6, TILES = 4, SUMS = HEIGHT * TILES, LANES = 16;
constexpr int64_t BLOCK_VALUES = SUMS * LANES;  // outputs of one block times TILES tiles

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#include "unroll.inc"

inline __m512i load(const void* from) { return _mm512_loadu_si512(from); }

inline __m512i dword(const void* from) {
  int32_t value;
  std::memcpy(&value, from, 4);
  return _mm512_set1_epi32(value);
}

// 16 bfloat16 values as float
inline __m512 widen(const uint16_t* from) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline __m512i zeros_of(const TiledWeight& w, int64_t group, int64_t tile) {
  if (!w.zero) return _mm512_set1_epi32(8);
  const uint8_t* from = w.zero + group * w.n16 + tile * TILED_ROWS;
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline int64_t columns_of(const TiledWeight& w, int64_t group) { return least(w.group, w.k - group * w.group); }

// First k-block behind a group.
inline int64_t end_of(const TiledWeight& w, int64_t group) {
  return group + 1 < w.groups ? (group + 1) * w.group / TILED_DEPTH : w.blocks;
}

// Rounded to nearest even like the reference: VCVTNEPS2BF16 would flush subnormals.
inline __m256i to_bf16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

// Writes y = totals * x_scale + bias of one block, totals [row][TILES][LANES]; x_scale null: 1.
void finish(const GemmCall& call, int64_t block, int64_t first, int64_t last, const float* totals) {
  const TiledOut& out = call.out;
  const int64_t n = call.weight->n, row = block * HEIGHT, rows = least(HEIGHT, call.m - row);
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t column = tile * TILED_ROWS;
    const __mmask16 mask = __mmask16((1u << least(TILED_ROWS, n - column)) - 1);
    const __m512 bias = out.bias ? _mm512_maskz_loadu_ps(mask, out.bias + column) : _mm512_setzero_ps();
    for (int64_t r = 0; r < rows; ++r) {
      __m512 y = _mm512_loadu_ps(totals + (r * TILES + tile - first) * LANES);
      if (call.x_scale) y = _mm512_mul_ps(y, _mm512_set1_ps(call.x_scale[row + r]));
      if (out.bias) y = _mm512_add_ps(y, bias);
      const int64_t at = (row + r) * n + column;
      if (out.type == DFQ_FLOAT32) {
        _mm512_mask_storeu_ps(static_cast<float*>(out.y) + at, mask, y);
      } else {
        const __m256i half = out.type == DFQ_BFLOAT16 ? to_bf16(y) : _mm512_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT);
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out.y) + at, mask, half);
      }
    }
  }
}

#include "gemm_integer_avx512.inc"

#include "gemm_float_avx512.inc"

// totals, sums of one group that is longer than a piece, what a piece of the weight becomes
int64_t work_bytes(int64_t blocks) { return 2 * blocks * BLOCK_VALUES * 4 + WEIGHT_BYTES; }

}  // namespace

const GemmKernels avx512_gemm = {
    HEIGHT, TILES, integer_bytes, float_bytes, pack_integer, pack_float, work_bytes, multiply_integer, multiply_float,
};

}  // namespace dfq
