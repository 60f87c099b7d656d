// The Sylvester-Hadamard transform of `size` (a power of two) floats in place on 64-bit ARM, unnormalised.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "common/simd_neon.h"
#include "hadamard/butterflies.h"

namespace dfq::DFQ_ISA {
namespace {

// The two stages among four neighbours take them apart on loading.
void transform(float* x, int64_t size) {
  if (size < 16) return butterflies(x, size, 1);
  for (int64_t i = 0; i < size; i += 16) {
    float32x4x4_t v = vld4q_f32(x + i);
    const float32x4_t a = vaddq_f32(v.val[0], v.val[1]), b = vsubq_f32(v.val[0], v.val[1]);
    const float32x4_t c = vaddq_f32(v.val[2], v.val[3]), d = vsubq_f32(v.val[2], v.val[3]);
    v.val[0] = vaddq_f32(a, c);
    v.val[1] = vaddq_f32(b, d);
    v.val[2] = vsubq_f32(a, c);
    v.val[3] = vsubq_f32(b, d);
    vst4q_f32(x + i, v);
  }
  butterflies(x, size, 4);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
