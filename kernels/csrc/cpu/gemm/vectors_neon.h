// The vectors of a block of a product with many rows on 64-bit ARM: HEIGHT rows times VECTORS vectors of LANES columns,
// and what integer.h and float32.h do with them.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/isa.h"
#include "common/simd_neon.h"
#include "gemm/gemm_kernels.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int HEIGHT = 6, VECTORS = 4, LANES = 4;
using Ints = int32x4_t;
using Floats = float32x4_t;

inline Ints ints_at(const void* from) { return vld1q_s32(static_cast<const int32_t*>(from)); }
inline Floats floats_at(const float* from) { return vld1q_f32(from); }
inline void put(void* to, Ints v) { vst1q_s32(static_cast<int32_t*>(to), v); }
inline void put(float* to, Floats v) { vst1q_f32(to, v); }
inline Ints same(int32_t value) { return vdupq_n_s32(value); }
inline Ints minus(Ints a, Ints b) { return vsubq_s32(a, b); }
inline Ints product(Ints a, Ints b) { return vmulq_s32(a, b); }
inline Floats plus(Floats a, Floats b) { return vaddq_f32(a, b); }
inline Floats product(Floats a, Floats b) { return vmulq_f32(a, b); }
inline Floats to_floats(Ints v) { return vcvtq_f32_s32(v); }
inline Ints pair(Ints low, Ints high) { return vorrq_s32(low, vshlq_n_s32(high, 16)); }
inline Ints low_nibble(Ints v) { return vandq_s32(v, same(15)); }
inline Ints without_nibble(Ints v) { return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(v), 4)); }

// Of 16-bit pairs: the sum of both products.
inline Ints pair_product(Ints a, Ints b) {
  const int16x8_t left = vreinterpretq_s16_s32(a), right = vreinterpretq_s16_s32(b);
  return vpaddq_s32(vmull_s16(vget_low_s16(left), vget_low_s16(right)), vmull_high_s16(left, right));
}

// bfloat16 values as float
inline Floats widen(const uint16_t* from) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16)); }

inline Ints zeros_of(const Tile16Weight& w, int64_t group, int64_t column) {
  if (!w.zero) return same(8);
  uint32_t four;
  std::memcpy(&four, w.zero + group * w.n16 + column, 4);
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}

}  // namespace
}  // namespace dfq::DFQ_ISA
