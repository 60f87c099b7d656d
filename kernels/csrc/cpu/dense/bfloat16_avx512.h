// Products of bfloat16 rows and weights with VDPBF16PS, two products a lane and instruction.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "common/lanes.h"
#include "common/simd_avx512.h"
#include "dense/dense_kernels.h"
#include "dense/take.h"

namespace dfq::DFQ_ISA {
namespace {

// R output rows for M rows of x, two products a lane and instruction
template <int R, int M>
void bf16_block(const uint16_t* x, int64_t stride, const DenseWeight& w, int64_t row, float* out,
                  int64_t out_stride) {
  __m512 sums[R][M];
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < M; ++i) sums[r][i] = _mm512_setzero_ps();
  }
  const int64_t k = w.k;
  const uint16_t* const weight = static_cast<const uint16_t*>(w.data) + row * k;
  for (int64_t at = 0; at < k; at += 32) {
    const __mmask32 mask = at + 32 <= k ? ~0u : ~0u >> (32 - (k - at));
    __m512bh rows[M];
    for (int i = 0; i < M; ++i) rows[i] = (__m512bh)_mm512_loadu_si512(x + i * stride + at);
    for (int r = 0; r < R; ++r) {
      const __m512bh v = (__m512bh)_mm512_maskz_loadu_epi16(mask, weight + r * k + at);
      __builtin_prefetch(weight + (R + r) * k + at);
      for (int i = 0; i < M; ++i) sums[r][i] = _mm512_dpbf16_ps(sums[r][i], v, rows[i]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < M; ++i) out[i * out_stride + row + r] = total(Floats(sums[r][i]));
  }
}

template <int M>
void bf16_rows(const uint16_t* x, int64_t stride, const DenseWeight& w, int64_t begin, int64_t end, float* out,
                 int64_t out_stride) {
  int64_t row = begin;
  for (; row + 4 <= end; row += 4) bf16_block<4, M>(x, stride, w, row, out, out_stride);
  for (; row < end; ++row) bf16_block<1, M>(x, stride, w, row, out, out_stride);
}

void dense_bf16(const uint16_t* x, int64_t rows, int64_t stride, const DenseWeight& w, int64_t begin, int64_t end,
                  float* out, int64_t out_stride) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) bf16_rows<4>(x + i * stride, stride, w, begin, end, out + i * out_stride, out_stride);
  for (; i + 2 <= rows; i += 2) bf16_rows<2>(x + i * stride, stride, w, begin, end, out + i * out_stride, out_stride);
  if (i < rows) bf16_rows<1>(x + i * stride, stride, w, begin, end, out + i * out_stride, out_stride);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
