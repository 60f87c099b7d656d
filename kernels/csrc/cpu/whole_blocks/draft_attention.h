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

void add_scaled(float* x, const float* y, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] += factor * y[i];
}

template <int TYPE>
inline float dot(const float* query, const void* rows, int64_t row, int64_t dim) {
  Floats sum = {}, q, k;
  int64_t at = 0;
  for (; at + LANES <= dim; at += LANES) {
    load_lanes(query + at, q);
    load_lanes_of<TYPE>(rows, row * dim + at, k);
    sum += q * k;
  }
  if (at < dim) {
    load_lanes(query + at, q);
    load_some_of<TYPE>(rows, row * dim + at, dim - at, k);
    sum += q * k;
  }
  return reduce_sum_lanes(sum);
}

template <int TYPE>
void weighted_sum(const void* rows, int64_t from, int64_t count, int64_t dim, const float* weights, float* out) {
  for (int64_t at = 0; at < dim; at += LANES) {
    const int64_t width = minimum(LANES, dim - at);
    Floats sum, v;
    load_lanes(out + at, sum);
    for (int64_t i = 0; i < count; ++i) {
      if (width == LANES) load_lanes_of<TYPE>(rows, (from + i) * dim + at, v);
      else load_some_of<TYPE>(rows, (from + i) * dim + at, width, v);
      sum += v * weights[i];
    }
    store_lanes(sum, out + at);
  }
}

constexpr float MASKED_SCORE = -1e30f;

template <int TYPE>
void attend_of(const DraftQuery& a, float* scores, float* out) {
  const int64_t count = a.prefix + a.tail;
  for (int64_t i = 0; i < a.prefix; ++i) {
    const int64_t distance = i ? a.newest - (i - 1) : 0;
    scores[i] = dot<TYPE>(a.query, a.k, i, a.dim) - a.slope * float(distance > 0 ? distance : 0);
  }
  for (int64_t i = 0; i < a.tail; ++i) {
    const int64_t distance = a.places ? a.newest - a.places[i] : 0;
    const bool visible = !a.tree || a.tree[i];
    const float score = dot<TYPE>(a.query, a.k, a.tail_at + i, a.dim) - a.slope * float(distance > 0 ? distance : 0);
    scores[a.prefix + i] = visible ? score : MASKED_SCORE;
  }
  for (int64_t i = count; i % LANES; ++i) scores[i] = MASKED_SCORE;
  Floats high = Floats{} + MASKED_SCORE, sum = {}, x, p;
  for (int64_t i = 0; i < count; i += LANES) {
    load_lanes(scores + i, x);
    select_greater(x, high, x, high, high);
  }
  const float top = reduce_max_lanes(high, MASKED_SCORE);
  for (int64_t i = 0; i < count; i += LANES) {
    load_lanes(scores + i, x);
    exp2_lanes(x - top, p);
    sum += p;
    store_lanes(p, scores + i);
  }
  for (int64_t at = 0; at < a.dim; at += LANES) store_lanes(Floats{}, out + at);
  weighted_sum<TYPE>(a.v, 0, a.prefix, a.dim, scores, out);
  weighted_sum<TYPE>(a.v, a.tail_at, a.tail, a.dim, scores + a.prefix, out);
  const float factor = 1.0f / reduce_sum_lanes(sum);
  for (int64_t i = 0; i < a.dim; ++i) out[i] *= factor;
}

void attend(const DraftQuery& query, float* scores, float* out) {
  if (query.type == DFQ_FLOAT32) attend_of<DFQ_FLOAT32>(query, scores, out);
  else attend_of<DFQ_BFLOAT16>(query, scores, out);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
