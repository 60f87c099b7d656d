// Sixteen values of any storage as float32, and the sum of sixteen lanes, with AVX-512.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/isa.h"
#include "common/lanes.h"
#include "common/simd_avx512.h"
#include "dfq_abi.h"

namespace dfq::DFQ_ISA {
namespace {

template <int KIND>
inline __attribute__((always_inline)) void load_lanes_of(const void* x, int64_t at, Floats& to) {
  if constexpr (KIND == DFQ_FLOAT32) {
    to = Floats(_mm512_loadu_ps(static_cast<const float*>(x) + at));
  } else if constexpr (KIND == DFQ_BFLOAT16) {
    const void* const from = static_cast<const uint16_t*>(x) + at;
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
    to = Floats(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
  } else {
    const void* const from = static_cast<const uint8_t*>(x) + at;
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
    to = Floats(_mm512_cvtepi32_ps(_mm512_sub_epi32(wide, _mm512_set1_epi32(128))));
  }
}

// in the order of fold_sum
inline float total(const Floats& v) {
  const __m512 all = __m512(v);
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}

}  // namespace
}  // namespace dfq::DFQ_ISA
