// AVX-512 (VNNI, BF16, VBMI): products of the tile16 family with many rows. Blocks of 6 rows times 4 tiles: 24 sums in
// registers, four loads of the weight and six broadcasts for 24 multiply-adds.
#include <immintrin.h>

#include <cstring>

#include "dfq_kernels.h"
#include "gemm/gemm_kernels.h"

namespace dfq {
namespace {

constexpr int HEIGHT = 6, VECTORS = 4, LANES = 16;
using Ints = __m512i;
using Floats = __m512;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#include "common/unroll.h"

inline Ints ints_at(const void* from) { return _mm512_loadu_si512(from); }
inline Floats floats_at(const float* from) { return _mm512_loadu_ps(from); }
inline void put(void* to, Ints v) { _mm512_storeu_si512(to, v); }
inline void put(float* to, Floats v) { _mm512_storeu_ps(to, v); }
inline Ints same(int32_t value) { return _mm512_set1_epi32(value); }
inline Ints minus(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Ints product(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
inline Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats product(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
inline Ints pair(Ints low, Ints high) { return _mm512_or_si512(low, _mm512_slli_epi32(high, 16)); }
inline Ints pair_product(Ints a, Ints b) { return _mm512_madd_epi16(a, b); }

inline Ints dword(const void* from) {
  int32_t value;
  std::memcpy(&value, from, 4);
  return same(value);
}

// bfloat16 values as float
inline Floats widen(const uint16_t* from) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline Ints zeros_of(const TiledWeight& w, int64_t group, int64_t column) {
  if (!w.zero) return same(8);
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.zero + group * w.n16 + column)));
}

int32_t sum_bytes(const int8_t* q, int64_t count) {
  __m512i sum = _mm512_setzero_si512();
  const __m512i ones = _mm512_set1_epi8(1);
  for (int64_t j = 0; j < count; j += 64) {
    const __mmask64 mask = ~0ull >> (64 - least(64, count - j));
    sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8(mask, q + j));
  }
  return _mm512_reduce_add_epi32(sum);
}

// Rounded to nearest even like the reference: VCVTNEPS2BF16 would flush subnormals.
inline __m256i to_bf16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

// Writes y = totals * x_scale + bias of `width` vectors of one block; x_scale null: 1.
void finish(const GemmCall& call, int64_t block, int64_t column, int width, const float* totals) {
  const TiledOut& out = call.out;
  const int64_t n = call.weight->n, row = block * HEIGHT, rows = least(HEIGHT, call.m - row);
  for (int t = 0; t < width; ++t, column += LANES, totals += LANES) {
    const __mmask16 mask = __mmask16((1u << least(LANES, n - column)) - 1);
    const Floats bias = out.bias ? _mm512_maskz_loadu_ps(mask, out.bias + column) : _mm512_setzero_ps();
    for (int64_t r = 0; r < rows; ++r) {
      Floats y = floats_at(totals + r * VECTORS * LANES);
      if (call.x_scale) y = product(y, _mm512_set1_ps(call.x_scale[row + r]));
      if (out.bias) y = plus(y, bias);
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

// sums += codes of `blocks` (1 or more) k-blocks times the rows of a block. The instruction is written out because gcc 12 spills
// accumulators of its intrinsic.
template <int WIDTH>
inline __attribute__((always_inline)) void multiply_add(Ints* sums, const char* rows, const uint8_t* tiles,
                                                        int64_t stride, int64_t blocks) {
  const Ints nibble = _mm512_set1_epi8(15);
  const auto half = [&](const char* from, const Ints* codes) __attribute__((always_inline)) {
    unrolled<HEIGHT>(DFQ_EACH(r) {
      const Ints value = dword(from + 4 * r);
      unrolled<WIDTH>(DFQ_EACH(t) {
        asm("vpdpbusd %2, %1, %0" : "+v"(sums[r * WIDTH + t]) : "v"(codes[t]), "v"(value));
      });
    });
  };
  do {
    Ints codes[WIDTH];
    unrolled<WIDTH>(DFQ_EACH(t) { codes[t] = _mm512_and_si512(ints_at(tiles + t * stride), nibble); });
    half(rows, codes);
    unrolled<WIDTH>(DFQ_EACH(t) {
      codes[t] = _mm512_and_si512(_mm512_srli_epi16(ints_at(tiles + t * stride), 4), nibble);
    });
    half(rows + 4 * HEIGHT, codes);
    rows += 8 * HEIGHT, tiles += TILED_BYTES;
  } while (--blocks > 0);
}

#include "gemm/integer_rows.h"

#include "gemm/integer.h"

#include "gemm/bfloat16_avx512.h"

void multiply_integer(const GemmCall& call, int64_t first, int64_t last, int64_t begin, int64_t end, void* work) {
  float* memory = static_cast<float*>(work);
  switch (last - first) {
    case 1: return integer_columns<1>(call, first, begin, end, memory);
    case 2: return integer_columns<2>(call, first, begin, end, memory);
    case 3: return integer_columns<3>(call, first, begin, end, memory);
    default: return integer_columns<4>(call, first, begin, end, memory);
  }
}

// totals, sums of one group that is longer than a piece, what a piece of the weight becomes
int64_t work_bytes(int64_t blocks) { return 2 * blocks * BLOCK_VALUES * 4 + WEIGHT_BYTES; }

}  // namespace

const GemmKernels avx512_gemm = {
    HEIGHT,     VECTORS,          integer_bytes,  float_bytes, pack_integer, pack_float,
    work_bytes, multiply_integer, multiply_float,
};

}  // namespace dfq
