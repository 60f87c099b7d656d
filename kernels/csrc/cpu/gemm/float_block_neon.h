// float_block on 64-bit ARM: totals [HEIGHT][ROW_VALUES] += rows [depth][HEIGHT] times panel [depth][ROW_VALUES],
// `depth` (1 or more) columns of k.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "common/simd_neon.h"
#include "common/unroll.h"
#include "gemm/integer.h"
#include "gemm/vectors_neon.h"

namespace dfq::DFQ_ISA {
namespace {

void float_block(const float* rows, const float* panel, int64_t depth, float* totals) {
  Floats sum[HEIGHT][VECTORS];
  unrolled<HEIGHT * VECTORS>(DFQ_EACH(i) { sum[i / VECTORS][i % VECTORS] = floats_at(totals + i * LANES); });
  do {
    const Floats four = vld1q_f32(rows);
    const float32x2_t two = vld1_f32(rows + 4);
    for (int t = 0; t < VECTORS; ++t) {
      const Floats w = vld1q_f32(panel + t * LANES);
      sum[0][t] = vfmaq_laneq_f32(sum[0][t], w, four, 0);
      sum[1][t] = vfmaq_laneq_f32(sum[1][t], w, four, 1);
      sum[2][t] = vfmaq_laneq_f32(sum[2][t], w, four, 2);
      sum[3][t] = vfmaq_laneq_f32(sum[3][t], w, four, 3);
      sum[4][t] = vfmaq_lane_f32(sum[4][t], w, two, 0);
      sum[5][t] = vfmaq_lane_f32(sum[5][t], w, two, 1);
    }
    rows += HEIGHT, panel += ROW_VALUES;
  } while (--depth > 0);
  unrolled<HEIGHT * VECTORS>(DFQ_EACH(i) { put(totals + i * LANES, sum[i / VECTORS][i % VECTORS]); });
}

}  // namespace
}  // namespace dfq::DFQ_ISA
