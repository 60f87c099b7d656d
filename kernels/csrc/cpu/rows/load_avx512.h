// Values of rows of any type in registers of AVX-512, and the range of a row.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/isa.h"
#include "common/simd_avx512.h"
#include "dfq_abi.h"

namespace dfq::DFQ_ISA {
namespace {

inline __m512i lanes() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

// Sixteen values of a row of any type, from `at` on, as float; `mask`: which of them there are.
template <int TYPE>
inline __m512 load16(const void* x, int64_t at) {
  if (TYPE == DFQ_FLOAT32) return _mm512_loadu_ps(static_cast<const float*>(x) + at);
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(x) + at));
  if (TYPE == DFQ_FLOAT16) return _mm512_cvtph_ps(v);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

template <int TYPE>
inline __m512 load16(const void* x, int64_t at, __mmask16 mask) {
  if (TYPE == DFQ_FLOAT32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(x) + at);
  const __m256i v = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x) + at);
  if (TYPE == DFQ_FLOAT16) return _mm512_cvtph_ps(v);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

// The same for 32 values: of bfloat16, one permutation puts 16 into the upper halves of 32 bits.
template <int TYPE>
inline void load32(const void* x, int64_t at, __m512& first, __m512& second) {
  if (TYPE == DFQ_BFLOAT16) {
    const __m512i lane = _mm512_slli_epi32(lanes(), 16),
                  both = _mm512_loadu_si512(static_cast<const uint16_t*>(x) + at);
    const __m512i next = _mm512_add_epi32(lane, _mm512_set1_epi32(16 << 16));
    first = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, lane, both));
    second = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, next, both));
  } else {
    first = load16<TYPE>(x, at);
    second = load16<TYPE>(x, at + 16);
  }
}

// Calls function(type tag) for the type of a row.
template <int TYPE>
struct Type {
  static constexpr int value = TYPE;
};

template <typename Function>
inline void with_type(int type, Function function) {
  if (type == DFQ_FLOAT32) return function(Type<DFQ_FLOAT32>());
  if (type == DFQ_BFLOAT16) return function(Type<DFQ_BFLOAT16>());
  function(Type<DFQ_FLOAT16>());
}

inline __mmask16 first_lanes(int64_t count) { return __mmask16(count >= 16 ? 0xffff : (1 << count) - 1); }

// The range of a row, see range.h. Floats are compared by their bits: of the signed integers the largest is the
// largest value, of the unsigned ones the lowest, and a NaN is beyond both infinities.
struct RowRange {
  __m512i low = _mm512_set1_epi32(INT32_MIN), high = _mm512_setzero_si512();  // -0, +0

  void add(__m512 v) {
    low = _mm512_max_epu32(low, _mm512_castps_si512(v));
    high = _mm512_max_epi32(high, _mm512_castps_si512(v));
  }
  void add(const RowRange& other) {
    low = _mm512_max_epu32(low, other.low);
    high = _mm512_max_epi32(high, other.high);
  }
  // NaN where any value is NaN or infinite
  void get(float& lowest, float& highest) const {
    const uint32_t bits = _mm512_reduce_max_epu32(low);
    const int32_t top = _mm512_reduce_max_epi32(high);
    std::memcpy(&lowest, &bits, 4);
    std::memcpy(&highest, &top, 4);
    const float bad = (lowest - lowest) + (highest - highest);
    lowest += bad, highest += bad;
  }
};

}  // namespace
}  // namespace dfq::DFQ_ISA
