// The vectors of a block of a product with many rows with AVX2: HEIGHT rows times VECTORS vectors of LANES columns, and
// what integer.h and float32.h do with them.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/isa.h"
#include "common/simd_avx2.h"
#include "gemm/gemm_kernels.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int HEIGHT = 6, VECTORS = 2, LANES = 8;
using Ints = __m256i;
using Floats = __m256;

inline Ints ints_at(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline Floats floats_at(const float* from) { return _mm256_loadu_ps(from); }
inline void put(void* to, Ints v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
inline void put(float* to, Floats v) { _mm256_storeu_ps(to, v); }
inline Ints same(int32_t value) { return _mm256_set1_epi32(value); }
inline Ints minus(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
inline Ints product(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
inline Floats plus(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats product(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
inline Ints pair(Ints low, Ints high) { return _mm256_or_si256(low, _mm256_slli_epi32(high, 16)); }
inline Ints pair_product(Ints a, Ints b) { return _mm256_madd_epi16(a, b); }

inline Ints low_nibble(Ints v) { return _mm256_and_si256(v, same(15)); }
inline Ints without_nibble(Ints v) { return _mm256_srli_epi32(v, 4); }

// bfloat16 values as float
inline Floats widen(const uint16_t* from) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

inline Ints zeros_of(const Tile16Weight& w, int64_t group, int64_t column) {
  if (!w.zero) return same(8);
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w.zero + group * w.n16 + column)));
}

}  // namespace
}  // namespace dfq::DFQ_ISA
