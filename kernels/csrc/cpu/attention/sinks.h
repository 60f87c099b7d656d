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

// Whether new row `row` of a call sees the sink at `position`.
inline bool sees_sink(const AttentionCall& call, int64_t batch, int64_t row, int64_t position) {
  if (position < 0 || position >= call.length) return false;
  const int64_t fresh = position - (call.length - call.rows);
  if (fresh < 0) return !call.first || position >= call.first[batch * call.rows + row];
  return call.tree ? call.tree[((call.trees > 1 ? batch : 0) * call.rows + row) * call.rows + fresh] != 0 : fresh <= row;
}

constexpr int64_t SINKS = 8;  // exact positions that are read at a time, each once for all lines

// One line over `count` exact positions from `at` on, keys and values [count][MAX_HEAD_DIM] -> `to`, which holds what
// came before.
void attend_sinks_of_line(const AttentionCall& call, int64_t batch, int64_t row, int64_t at, int64_t count,
                          const float* query, const float* keys, const float* values, float* to) {
  const float factor = call.scaling * LOG2_E;
  float scores[SINKS], peak = to[0];
  for (int64_t i = 0; i < count; ++i) {
    const bool seen = sees_sink(call, batch, row, at + i);
    scores[i] = seen ? dot(query, keys + i * MAX_HEAD_DIM, call.k.dim) * factor : MINUS_INFINITY;
    peak = scores[i] > peak ? scores[i] : peak;
  }
  const float rescale = to[0] == MINUS_INFINITY ? 0.0f : exp2_scalar(to[0] - peak);
  to[0] = peak, to[1] *= rescale;
  for (int64_t d = 0; d < call.v.dim; ++d) to[2 + d] *= rescale;
  for (int64_t i = 0; i < count; ++i) {
    if (scores[i] == MINUS_INFINITY) continue;
    const float weight = exp2_scalar(scores[i] - peak), *value = values + i * MAX_HEAD_DIM;
    to[1] += weight + scores[i] * 0.0f;
    for (int64_t d = 0; d < call.v.dim; ++d) to[2 + d] += weight * value[d];
  }
}

// The exact positions, which the stretches leave out.
void attend_sinks(const AttentionCall& call, int64_t batch, int64_t head, float* partial) {
  const int64_t start = call.sink_start ? call.sink_start[batch] : 0, lines = call.rows * call.group;
  const int64_t size = partial_size(call.v.dim);
  const float* const queries = call.query + (batch * call.kv_heads + head) * lines * call.k.dim;
  float keys[SINKS * MAX_HEAD_DIM], values[SINKS * MAX_HEAD_DIM];
  std::memset(partial, 0, size_t(lines * size) * 4);
  for (int64_t line = 0; line < lines; ++line) partial[line * size] = MINUS_INFINITY;
  for (int64_t at = 0; at < call.sinks; at += SINKS) {
    const int64_t count = call.sinks - at < SINKS ? call.sinks - at : SINKS;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t index = ((at + i) * call.batch + batch) * call.kv_heads + head;
      load_floats(call.k_sink, call.type, index * call.k.dim, call.k.dim, keys + i * MAX_HEAD_DIM);
      load_floats(call.v_sink, call.type, index * call.v.dim, call.v.dim, values + i * MAX_HEAD_DIM);
    }
    for (int64_t line = 0; line < lines; ++line) {
      attend_sinks_of_line(call, batch, line / call.group, start + at, count, queries + line * call.k.dim, keys, values,
                           partial + line * size);
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
