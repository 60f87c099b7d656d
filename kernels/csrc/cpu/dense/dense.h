// The loops behind dense_kernels.h, in sixteen lanes.
#pragma once
#include <cstdint>

#include "common/convert.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/lanes.h"
#include "dense/dense_kernels.h"
#include "dense/take.h"
#include "dfq_abi.h"

namespace dfq::DFQ_ISA {
namespace {

// rows of a weight and of x whose sums are in registers together
constexpr int WEIGHT_ROWS = DFQ_HAS_AVX512 ? 4 : 2, X_ROWS = DFQ_HAS_AVX512 ? 4 : 2;

// R output rows for M rows of x.
template <int KIND, int R, int M>
void dense_block(const float* x, int64_t stride, const DenseWeight& w, int64_t row, float* out, int64_t out_stride) {
  Floats sums[R][M] = {};
  const int64_t k = w.k;
  int64_t at = 0;
  const char* const next = static_cast<const char*>(w.data) + (row + R) * k * bytes_of<KIND>();
  for (; at + LANES <= k; at += LANES) {
    Floats rows[M];
    for (int i = 0; i < M; ++i) load_lanes(x + i * stride + at, rows[i]);
    for (int r = 0; r < R; ++r) {
      Floats v;
      load_lanes_of<KIND>(w.data, (row + r) * k + at, v);
      if (M == 1) __builtin_prefetch(next + (r * k + at) * bytes_of<KIND>());
      for (int i = 0; i < M; ++i) sums[r][i] += v * rows[i];
    }
  }
  if (at < k) {
    for (int r = 0; r < R; ++r) {
      Floats v, own;
      load_some_of<KIND>(w.data, (row + r) * k + at, k - at, v);
      for (int i = 0; i < M; ++i) {
        load_lanes(x + i * stride + at, own);
        sums[r][i] += v * own;
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    const float scale = w.scale ? load_bf16(w.scale[row + r]) : 1.0f;
    for (int i = 0; i < M; ++i) out[i * out_stride + row + r] = total(sums[r][i]) * scale;
  }
}

// The same with codes of 8 bits in several groups: codes are scaled before they are multiplied, which is exact.
template <int R, int M>
void grouped_block(const float* x, int64_t stride, const DenseWeight& w, int64_t row, float* out, int64_t out_stride) {
  Floats sums[R][M] = {};
  const int64_t k = w.k, groups = (k + w.group - 1) / w.group;
  const char* const next = static_cast<const char*>(w.data) + (row + R) * k;
  for (int64_t group = 0; group < groups; ++group) {
    float scale[R];
    for (int r = 0; r < R; ++r) scale[r] = load_bf16(w.scale[(row + r) * groups + group]);
    const int64_t end = minimum(k, (group + 1) * w.group);
    for (int64_t at = group * w.group; at < end; at += LANES) {
      Floats rows[M];
      for (int i = 0; i < M; ++i) load_lanes(x + i * stride + at, rows[i]);
      for (int r = 0; r < R; ++r) {
        Floats v;
        if (at + LANES <= k) load_lanes_of<DFQ_CODES8>(w.data, (row + r) * k + at, v);
        else load_some_of<DFQ_CODES8>(w.data, (row + r) * k + at, k - at, v);
        if (M == 1) __builtin_prefetch(next + r * k + at);
        v *= scale[r];
        for (int i = 0; i < M; ++i) sums[r][i] += v * rows[i];
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < M; ++i) out[i * out_stride + row + r] = total(sums[r][i]);
  }
}

constexpr int GROUPED_CODES = -1;  // beside enum dfq_kind: a template's name for grouped_block

template <int KIND, int R, int M>
void any_block(const float* x, int64_t stride, const DenseWeight& w, int64_t row, float* out, int64_t out_stride) {
  if constexpr (KIND == GROUPED_CODES) grouped_block<R, M>(x, stride, w, row, out, out_stride);
  else dense_block<KIND, R, M>(x, stride, w, row, out, out_stride);
}

template <int KIND, int M>
void dense_rows(const float* x, int64_t stride, const DenseWeight& w, int64_t begin, int64_t end, float* out,
                int64_t out_stride) {
  int64_t row = begin;
  for (; row + WEIGHT_ROWS <= end; row += WEIGHT_ROWS) {
    any_block<KIND, WEIGHT_ROWS, M>(x, stride, w, row, out, out_stride);
  }
  for (; row < end; ++row) any_block<KIND, 1, M>(x, stride, w, row, out, out_stride);
}

// A stretch of weights stays in the nearest caches while all rows of x pass.
template <int KIND>
void dense_of(const float* x, int64_t rows, int64_t stride, const DenseWeight& w, int64_t begin, int64_t end,
              float* out, int64_t out_stride) {
  for (int64_t from = begin; from < end; from += DENSE_ROWS) {
    const int64_t to = minimum(end, from + DENSE_ROWS);
    int64_t i = 0;
    for (; i + X_ROWS <= rows; i += X_ROWS) {
      dense_rows<KIND, X_ROWS>(x + i * stride, stride, w, from, to, out + i * out_stride, out_stride);
    }
    for (; i + 2 <= rows; i += 2) {
      dense_rows<KIND, 2>(x + i * stride, stride, w, from, to, out + i * out_stride, out_stride);
    }
    if (i < rows) dense_rows<KIND, 1>(x + i * stride, stride, w, from, to, out + i * out_stride, out_stride);
  }
}

void dense(const float* x, int64_t rows, int64_t stride, const DenseWeight& w, int64_t begin, int64_t end, float* out,
           int64_t out_stride) {
  if (w.kind == DFQ_FLOAT32) dense_of<DFQ_FLOAT32>(x, rows, stride, w, begin, end, out, out_stride);
  else if (w.kind == DFQ_BFLOAT16) dense_of<DFQ_BFLOAT16>(x, rows, stride, w, begin, end, out, out_stride);
  else if (w.group == w.k) dense_of<DFQ_CODES8>(x, rows, stride, w, begin, end, out, out_stride);
  else dense_of<GROUPED_CODES>(x, rows, stride, w, begin, end, out, out_stride);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
