// RMSNorm and gated activations of one row, the same arithmetic for every instruction set.
#pragma once
#include <cmath>
#include <cstdint>

#include "common/convert.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/lanes.h"
#include "common/limits.h"
#include "dfq_abi.h"
#include "fused_rows/fused_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

// x [k] rounded to `type`, as storing and loading it would
void round_row(float* x, int64_t k, int type) {
  if (type == DFQ_FLOAT32) return;
  uint16_t stored[512];
  for (int64_t at = 0; at < k; at += 512) {
    const int64_t count = minimum(512, k - at);
    store_floats(x + at, count, type, stored, 0);
    load_floats(stored, type, 0, count, x + at);
  }
}

inline float sum_of_squares(const float* x, int64_t k) {
  Floats sums[4] = {}, v;
  int64_t at = 0;
  for (; at + 4 * LANES <= k; at += 4 * LANES) {
    for (int i = 0; i < 4; ++i) {
      load_lanes(x + at + i * LANES, v);
      sums[i] += v * v;
    }
  }
  float rest = 0.0f;
  for (; at < k; ++at) rest += x[at] * x[at];
  return reduce_sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

void norm_row(const NormedRows& rows, int64_t row, float* to) {
  const int64_t k = rows.k;
  float part[512];
  load_floats(rows.x, rows.type, row * k, k, to);
  if (rows.residual) {
    for (int64_t at = 0; at < k; at += 512) {
      const int64_t count = minimum(512, k - at);
      load_floats(rows.residual, rows.type, row * k + at, count, part);
      for (int64_t i = 0; i < count; ++i) to[at + i] += part[i];
    }
    round_row(to, k, rows.type);
    store_floats(to, k, rows.type, rows.residual, row * k);
  }
  const float factor = 1.0f / std::sqrt(sum_of_squares(to, k) / float(k) + rows.epsilon);
  for (int64_t i = 0; i < k; ++i) to[i] *= factor;
  round_row(to, k, rows.type);
  if (!rows.weight) return;
  for (int64_t at = 0; at < k; at += 512) {
    const int64_t count = minimum(512, k - at);
    load_floats(rows.weight, rows.type, at, count, part);
    for (int64_t i = 0; i < count; ++i) to[at + i] *= part[i];
  }
  round_row(to, k, rows.type);
}

// x / (1 + exp(-x)), with exp(-|x|) alone so that nothing overflows; NaN stays NaN.
inline void silu(float* x) {
  Floats v, size, power_of, above;
  load_lanes(x, v);
  select_greater(Floats{}, v, -v, v, size);
  exp2_lanes(size * -LOG2_E, power_of);
  select_greater(Floats{}, v, power_of, Floats{} + 1.0f, above);
  v = v * (above / (power_of + 1.0f));
  store_lanes(v, x);
}

void silu_mul_row(const void* gate, const void* up, int type, int64_t at, int64_t k, float* to) {
  alignas(64) float part[512];
  for (int64_t first = 0; first < k; first += 512) {
    const int64_t count = minimum(512, k - first);
    load_floats(gate, type, at + first, count, part);
    for (int64_t i = count; i % LANES; ++i) part[i] = 0.0f;
    for (int64_t i = 0; i < count; i += LANES) silu(part + i);
    round_row(part, count, type);
    load_floats(up, type, at + first, count, to + first);
    for (int64_t i = 0; i < count; ++i) to[first + i] *= part[i];
  }
  round_row(to, k, type);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
