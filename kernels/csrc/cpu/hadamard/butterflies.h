// Stages of the fast Walsh-Hadamard transform.
#pragma once
#include <cstdint>

#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

// In-place fast Walsh-Hadamard transform of `size` (a power of two) floats from stage `half` on, two stages a pass.
void butterflies(float* x, int64_t size, int64_t half) {
  for (; 4 * half <= size; half *= 4) {
    for (int64_t at = 0; at < size; at += 4 * half) {
      float *p0 = x + at, *p1 = p0 + half, *p2 = p1 + half, *p3 = p2 + half;
#pragma GCC ivdep
      for (int64_t i = 0; i < half; ++i) {
        const float a = p0[i] + p1[i], b = p0[i] - p1[i], c = p2[i] + p3[i], d = p2[i] - p3[i];
        p0[i] = a + c;
        p1[i] = b + d;
        p2[i] = a - c;
        p3[i] = b - d;
      }
    }
  }
  if (half < size) {
    float *p0 = x, *p1 = x + half;
#pragma GCC ivdep
    for (int64_t i = 0; i < half; ++i) {
      const float a = p0[i], b = p1[i];
      p0[i] = a + b;
      p1[i] = a - b;
    }
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
