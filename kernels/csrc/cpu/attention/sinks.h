// The exact positions (attention sinks), which the stretches leave out, and the sum of partial results.
#pragma once
#include <cstdint>
#include <cstring>

#include "attention/attend.h"
#include "attention/attention_kernels.h"
#include "attention/fixed_point.h"
#include "common/convert.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/lanes.h"
#include "common/limits.h"

namespace dfq::DFQ_ISA {
namespace {

inline float dot(const float* a, const float* b, int64_t count) {
  float lanes[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    for (int lane = 0; lane < LANES; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < count; ++i) lanes[0] += a[i] * b[i];
  return reduce_sum(lanes);
}

// The exact positions, which the stretches leave out.
void attend_sinks(const AttentionCall& call, int64_t batch, int64_t head, float* partial) {
  const int64_t start = call.sink_start ? call.sink_start[batch] : 0, lines = call.rows * call.group;
  const int64_t past = call.length - call.rows;
  const float factor = call.scaling * LOG2_E;
  float row[MAX_HEAD_DIM];
  for (int64_t line = 0; line < lines; ++line) {
    float* to = partial + line * partial_size(call.v.dim);
    std::memset(to, 0, size_t(partial_size(call.v.dim)) * 4);
    to[0] = MINUS_INFINITY;
    const float* query = call.query + ((batch * call.kv_heads + head) * lines + line) * call.k.dim;
    const int64_t at = line / call.group;
    const int64_t first = call.first ? call.first[batch * call.rows + at] : 0;
    for (int64_t i = 0; i < call.sinks; ++i) {
      const int64_t position = start + i, fresh = position - past;
      if (position < 0 || position >= call.length || (fresh < 0 && position < first)) continue;
      if (fresh >= 0 && call.tree) {
        if (!call.tree[((call.trees > 1 ? batch : 0) * call.rows + at) * call.rows + fresh]) continue;
      } else if (fresh > at) {
        continue;
      }
      const int64_t index = (i * call.batch + batch) * call.kv_heads + head;
      load_floats(call.k_sink, call.type, index * call.k.dim, call.k.dim, row);
      const float s = dot(query, row, call.k.dim) * factor;
      const float peak = s > to[0] ? s : to[0], rescale = to[0] == MINUS_INFINITY ? 0.0f : exp2_scalar(to[0] - peak);
      const float p = exp2_scalar(s - peak);
      load_floats(call.v_sink, call.type, index * call.v.dim, call.v.dim, row);
      for (int64_t d = 0; d < call.v.dim; ++d) to[2 + d] = to[2 + d] * rescale + p * row[d];
      to[1] = to[1] * rescale + p + s * 0.0f;
      to[0] = peak;
    }
  }
}

// A line that sees nothing is zero.
void merge_partials(const float* partial, int64_t count, int64_t stride, int64_t dim, int type, void* out,
                      int64_t at) {
  float peak = MINUS_INFINITY, total = 0.0f, bad = 0.0f, sums[MAX_HEAD_DIM];
  for (int64_t i = 0; i < count; ++i) {
    const float* from = partial + i * stride;
    peak = from[0] > peak ? from[0] : peak;
    bad += from[1] * 0.0f;
  }
  for (int64_t d = 0; d < dim; ++d) sums[d] = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float* from = partial + i * stride;
    if (from[0] == MINUS_INFINITY) continue;
    const float partition = exp2_scalar(from[0] - peak);
    total += from[1] * partition;
    for (int64_t d = 0; d < dim; ++d) sums[d] += from[2 + d] * partition;
  }
  const float divisor = total > 0.0f ? total : 1.0f;
  for (int64_t d = 0; d < dim; ++d) sums[d] = sums[d] / divisor + bad;
  store_floats(sums, dim, type, out, at);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
