// The vectors of a block of a product with many rows with AVX-512: HEIGHT rows times VECTORS vectors of LANES columns,
// and what integer.h and float32.h do with them.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "common/simd_avx512.h"
#include "gemm/gemm_kernels.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int HEIGHT = 6, VECTORS = 4, LANES = 16;
using Ints = __m512i;
using Floats = __m512;

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

inline Floats widen(const uint16_t* from) { return widen_bf16(from); }

inline Ints zeros_of(const Tile16Weight& w, int64_t group, int64_t column) {
  if (!w.zero) return same(8);
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.zero + group * w.n16 + column)));
}

}  // namespace
}  // namespace dfq::DFQ_ISA
