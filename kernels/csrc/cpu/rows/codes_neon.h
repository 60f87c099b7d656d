// Loops over the values of a row on 64-bit ARM: its range, and its codes. extend: the range, `count` values further;
// write_codes: one byte per code, signed or not.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "common/simd_neon.h"
#include "rows/range.h"

namespace dfq::DFQ_ISA {
namespace {

void extend(Range& range, const float* x, int64_t count) {
  float32x4_t low[4], high[4], bad[4];
  for (int i = 0; i < 4; ++i) {
    low[i] = vld1q_f32(range.low + 4 * i);
    high[i] = vld1q_f32(range.high + 4 * i);
    bad[i] = vld1q_f32(range.bad + 4 * i);
  }
  int64_t at = 0;
  for (; at + LANES <= count; at += LANES) {
    for (int i = 0; i < 4; ++i) {
      const float32x4_t v = vld1q_f32(x + at + 4 * i);
      low[i] = vminnmq_f32(low[i], v);
      high[i] = vmaxnmq_f32(high[i], v);
      bad[i] = vaddq_f32(bad[i], vmulq_f32(v, vdupq_n_f32(0.0f)));
    }
  }
  for (int i = 0; i < 4; ++i) {
    vst1q_f32(range.low + 4 * i, low[i]);
    vst1q_f32(range.high + 4 * i, high[i]);
    vst1q_f32(range.bad + 4 * i, bad[i]);
  }
  for (; at < count; ++at) extend_one(range, 0, x[at]);
}

// One byte per code, signed or not: the low byte of the integer.
void write_codes(const float* x, int64_t count, float scale, float zero, float floor, float ceil, uint8_t* to) {
  const float32x4_t scales = vdupq_n_f32(scale), zeros = vdupq_n_f32(zero), limit = vdupq_n_f32(1024.0f);
  const float32x4_t floors = vdupq_n_f32(floor), ceils = vdupq_n_f32(ceil);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    uint16x4_t codes[4];
    for (int part = 0; part < 4; ++part) {
      float32x4_t v = vdivq_f32(vld1q_f32(x + i + 4 * part), scales);
      v = vrndnq_f32(vminq_f32(vmaxq_f32(v, vnegq_f32(limit)), limit));
      v = vminq_f32(vmaxq_f32(vaddq_f32(v, zeros), floors), ceils);
      codes[part] = vmovn_u32(vreinterpretq_u32_s32(vcvtq_s32_f32(v)));
    }
    const uint16x8_t left = vcombine_u16(codes[0], codes[1]), right = vcombine_u16(codes[2], codes[3]);
    vst1q_u8(to + i, vuzp1q_u8(vreinterpretq_u8_u16(left), vreinterpretq_u8_u16(right)));
  }
  for (; i < count; ++i) to[i] = uint8_t(int32_t(code_of(x[i], scale, zero, floor, ceil)));
}

}  // namespace
}  // namespace dfq::DFQ_ISA
