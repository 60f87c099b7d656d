// What the units for 64-bit ARM share: 4-bit codes as signed bytes, and multiply-adds of four neighbouring bytes. Codes
// are at most 15, so that they are the same number signed and unsigned, and SDOT serves where x86 needs unsigned times
// signed.
#pragma once
#include <arm_neon.h>
#include <cstdint>
#include <cstring>

#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

inline uint8x16_t bytes_at(const void* from) { return vld1q_u8(static_cast<const uint8_t*>(from)); }
inline int8x16_t low_codes(uint8x16_t v) { return vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15))); }
inline int8x16_t high_codes(uint8x16_t v) { return vreinterpretq_s8_u8(vshrq_n_u8(v, 4)); }

// Four bytes of a row, in every lane.
inline int8x16_t quad_at(const void* from) {
  int32_t value;
  std::memcpy(&value, from, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(value));
}

#if DFQ_HAS_DOTPROD
// Lane i: sum + codes[4 i .. 4 i + 3] . values[4 LANE .. 4 LANE + 3]
template <int LANE>
inline int32x4_t plus_products(int32x4_t sum, int8x16_t codes, int8x16_t values) {
  return vdotq_laneq_s32(sum, codes, values, LANE);
}
#endif

}  // namespace
}  // namespace dfq::DFQ_ISA
