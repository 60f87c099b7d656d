// sum += a * b in sixteen lanes, rounded once where the processor can.
#pragma once
#include <cstring>

#include "common/isa.h"
#include "common/lanes.h"
#include "common/simd.h"

namespace dfq::DFQ_ISA {
namespace {

inline void multiply_add_lanes(Floats& sum, const Floats& a, const Floats& b) {
#if DFQ_HAS_AVX512
  sum = Floats(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(sum)));
#elif DFQ_HAS_AVX2
  __m256 x[2], y[2], to[2];
  std::memcpy(x, &a, 64), std::memcpy(y, &b, 64), std::memcpy(to, &sum, 64);
  for (int i = 0; i < 2; ++i) to[i] = _mm256_fmadd_ps(x[i], y[i], to[i]);
  std::memcpy(&sum, to, 64);
#elif DFQ_HAS_NEON
  float32x4_t x[4], y[4], to[4];
  std::memcpy(x, &a, 64), std::memcpy(y, &b, 64), std::memcpy(to, &sum, 64);
  for (int i = 0; i < 4; ++i) to[i] = vfmaq_f32(to[i], x[i], y[i]);
  std::memcpy(&sum, to, 64);
#else
  sum += a * b;
#endif
}

}  // namespace
}  // namespace dfq::DFQ_ISA
