// What the units for AVX-512 share: broadcasts, and bfloat16 to float32 and back.
#pragma once
#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

inline __m512i dword_x16(const void* from) {
  int32_t value;
  std::memcpy(&value, from, 4);
  return _mm512_set1_epi32(value);
}

// 16 bfloat16 values as float
inline __m512 widen_bf16(const uint16_t* from) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Rounded to nearest even like the reference. VCVTNEPS2BF16 would flush subnormals, which are rare.
inline __m256i to_bf16(__m512 v) {
  if (__builtin_expect(_mm512_fpclass_ps_mask(v, 0x20) == 0, 1)) return __m256i(_mm512_cvtneps_pbh(v));
  const __m512i bits = _mm512_castps_si512(v),
                odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

}  // namespace
}  // namespace dfq::DFQ_ISA
