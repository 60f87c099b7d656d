// The loops behind draft_kernels.h, in sixteen lanes.
#pragma once
#include <cstdint>

#include "common/integers.h"
#include "common/isa.h"
#include "common/lanes.h"
#include "dense/take.h"
#include "dfq_abi.h"
#include "whole_blocks/draft_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

void add_times(float* x, const float* y, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] += factor * y[i];
}

template <int TYPE>
inline float dot(const float* query, const void* rows, int64_t row, int64_t dim) {
  Floats sum = {}, q, k;
  int64_t at = 0;
  for (; at + LANES <= dim; at += LANES) {
    load_lanes(query + at, q);
    take<TYPE>(rows, row * dim + at, k);
    sum += q * k;
  }
  if (at < dim) {
    load_lanes(query + at, q);
    take_some<TYPE>(rows, row * dim + at, dim - at, k);
    sum += q * k;
  }
  return total(sum);
}

template <int TYPE>
void mix(const void* rows, int64_t from, int64_t count, int64_t dim, const float* weights, float* out) {
  for (int64_t at = 0; at < dim; at += LANES) {
    const int64_t width = least(LANES, dim - at);
    Floats sum, v;
    load_lanes(out + at, sum);
    for (int64_t i = 0; i < count; ++i) {
      if (width == LANES) take<TYPE>(rows, (from + i) * dim + at, v);
      else take_some<TYPE>(rows, (from + i) * dim + at, width, v);
      sum += v * weights[i];
    }
    store_lanes(sum, out + at);
  }
}

constexpr float HIDDEN = -1e30f;

template <int TYPE>
void attend_of(const DraftQuery& a, float* scores, float* out) {
  const int64_t count = a.prefix + a.tail;
  for (int64_t i = 0; i < a.prefix; ++i) {
    const int64_t far = i ? a.newest - (i - 1) : 0;
    scores[i] = dot<TYPE>(a.query, a.k, i, a.dim) - a.slope * float(far > 0 ? far : 0);
  }
  for (int64_t i = 0; i < a.tail; ++i) {
    const int64_t far = a.places ? a.newest - a.places[i] : 0;
    const bool seen = !a.tree || a.tree[i];
    const float score = dot<TYPE>(a.query, a.k, a.tail_at + i, a.dim) - a.slope * float(far > 0 ? far : 0);
    scores[a.prefix + i] = seen ? score : HIDDEN;
  }
  for (int64_t i = count; i % LANES; ++i) scores[i] = HIDDEN;
  Floats high = Floats{} + HIDDEN, sum = {}, x, p;
  for (int64_t i = 0; i < count; i += LANES) {
    load_lanes(scores + i, x);
    pick_greater(x, high, x, high, high);
  }
  const float top = max_lanes(high, HIDDEN);
  for (int64_t i = 0; i < count; i += LANES) {
    load_lanes(scores + i, x);
    raise(x - top, p);
    sum += p;
    store_lanes(p, scores + i);
  }
  for (int64_t at = 0; at < a.dim; at += LANES) store_lanes(Floats{}, out + at);
  mix<TYPE>(a.v, 0, a.prefix, a.dim, scores, out);
  mix<TYPE>(a.v, a.tail_at, a.tail, a.dim, scores + a.prefix, out);
  const float factor = 1.0f / total(sum);
  for (int64_t i = 0; i < a.dim; ++i) out[i] *= factor;
}

void attend(const DraftQuery& query, float* scores, float* out) {
  if (query.type == DFQ_FLOAT32) attend_of<DFQ_FLOAT32>(query, scores, out);
  else attend_of<DFQ_BFLOAT16>(query, scores, out);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
