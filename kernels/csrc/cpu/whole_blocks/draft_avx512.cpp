// A pass of a draft with AVX-512.
#include <immintrin.h>

#include <cstring>

#include "dfq_draft.h"
#include "whole_blocks/draft_kernels.h"

namespace dfq {
namespace {

#include "common/convert.h"
#include "common/lanes.h"

constexpr int WEIGHT_ROWS = 4, X_ROWS = 4;  // of a weight and of x whose sums are in registers together

#define DFQ_OWN_TAKE
template <int KIND>
inline __attribute__((always_inline)) void take(const void* x, int64_t at, Floats& to) {
  if constexpr (KIND == DFQ_FLOAT32) {
    to = Floats(_mm512_loadu_ps(static_cast<const float*>(x) + at));
  } else if constexpr (KIND == DFQ_BFLOAT16) {
    const void* const from = static_cast<const uint16_t*>(x) + at;
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
    to = Floats(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
  } else {
    const void* const from = static_cast<const uint8_t*>(x) + at;
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
    to = Floats(_mm512_cvtepi32_ps(_mm512_sub_epi32(wide, _mm512_set1_epi32(128))));
  }
}

// in the order of fold_sum
inline float total(const Floats& v) {
  const __m512 all = __m512(v);
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}

#include "whole_blocks/draft_loops.h"

// R output rows for M rows of x, two products a lane and instruction
template <int R, int M>
void narrow_block(const uint16_t* x, int64_t stride, const DenseWeight& w, int64_t row, float* out, int64_t out_stride) {
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
void narrow_rows(const uint16_t* x, int64_t stride, const DenseWeight& w, int64_t begin, int64_t end, float* out,
                 int64_t out_stride) {
  int64_t row = begin;
  for (; row + 4 <= end; row += 4) narrow_block<4, M>(x, stride, w, row, out, out_stride);
  for (; row < end; ++row) narrow_block<1, M>(x, stride, w, row, out, out_stride);
}

void dense_narrow(const uint16_t* x, int64_t rows, int64_t stride, const DenseWeight& w, int64_t begin, int64_t end,
                  float* out, int64_t out_stride) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) narrow_rows<4>(x + i * stride, stride, w, begin, end, out + i * out_stride, out_stride);
  for (; i + 2 <= rows; i += 2) narrow_rows<2>(x + i * stride, stride, w, begin, end, out + i * out_stride, out_stride);
  if (i < rows) narrow_rows<1>(x + i * stride, stride, w, begin, end, out + i * out_stride, out_stride);
}

}  // namespace

const DraftKernels avx512_draft = {load_floats, store_floats, dense, dense_narrow, add_times, attend};

}  // namespace dfq
