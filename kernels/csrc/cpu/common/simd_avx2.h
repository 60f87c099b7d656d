// What the units for AVX2 share: loads, stores and broadcasts.
#pragma once
#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store(void* to, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }

inline __m256i dword_x8(const void* from) {
  int32_t value;
  std::memcpy(&value, from, 4);
  return _mm256_set1_epi32(value);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
