// Products of a block of rows and a panel of 16 outputs (tiles.h) on 64-bit ARM.
#pragma once
#include <cstdint>
#include <cstring>

#include "canonical/canonical_kernels.h"
#include "common/height.h"
#include "common/isa.h"
#include "common/simd_neon.h"

#if !DFQ_HAS_DOTPROD
#include "canonical/integer_micro_scalar.h"
#endif

namespace dfq::DFQ_ISA {
namespace {

template <int ROWS>
void float_micro(Height<ROWS>, const float* x, const float* panel, int64_t depth, float* sums) {
  float32x4_t total[ROWS][4];
  for (int r = 0; r < ROWS; ++r) {
    for (int t = 0; t < 4; ++t) total[r][t] = vdupq_n_f32(0.0f);
  }
  for (int64_t j = 0; j < depth; ++j, x += ROWS, panel += PANEL_N) {
    for (int t = 0; t < 4; ++t) {
      const float32x4_t w = vld1q_f32(panel + 4 * t);
      for (int r = 0; r < ROWS; ++r) total[r][t] = vfmaq_f32(total[r][t], w, vdupq_n_f32(x[r]));
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int t = 0; t < 4; ++t) {
      float* const to = sums + r * TILE_N + 4 * t;
      vst1q_f32(to, vaddq_f32(vld1q_f32(to), total[r][t]));
    }
  }
}

#if DFQ_HAS_DOTPROD
template <int ROWS>
void integer_micro(Height<ROWS>, const int8_t* q, const uint8_t* panel, int64_t quads, int, bool fresh, int32_t* sums) {
  int32x4_t total[ROWS][4];
  for (int r = 0; r < ROWS; ++r) {
    for (int t = 0; t < 4; ++t) total[r][t] = fresh ? vdupq_n_s32(0) : vld1q_s32(sums + r * TILE_N + 4 * t);
  }
  for (int64_t j = 0; j < quads; ++j, q += 4 * ROWS, panel += 4 * PANEL_N) {
    int8x16_t values[ROWS];
    for (int r = 0; r < ROWS; ++r) values[r] = quad_at(q + 4 * r);
    for (int t = 0; t < 4; ++t) {
      const int8x16_t codes = vreinterpretq_s8_u8(bytes_at(panel + 16 * t));
      for (int r = 0; r < ROWS; ++r) total[r][t] = vdotq_s32(total[r][t], codes, values[r]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int t = 0; t < 4; ++t) vst1q_s32(sums + r * TILE_N + 4 * t, total[r][t]);
  }
}
#endif

}  // namespace
}  // namespace dfq::DFQ_ISA
