// Products of bfloat16 rows and 8-bit codes with VDPBF16PS. A code u less its zero point is 16 (h - 7.5) + (l - 8), h and
// l its nibbles: both parts are bfloat16 numbers that a table of words holds, and take one instruction each for two
// products a lane.
#pragma once
#include <cstdint>

#include "common/convert.h"
#include "common/isa.h"
#include "common/lanes.h"
#include "common/simd_avx512.h"
#include "dense/dense_kernels.h"
#include "dense/take.h"

namespace dfq::DFQ_ISA {
namespace {

// bfloat16 of a whole number of at most eight bits
constexpr uint16_t bf16_of(int value) {
  if (!value) return 0;
  const int size = value < 0 ? -value : value;
  int exponent = 0;
  while (size >> (exponent + 1)) ++exponent;
  return uint16_t((value < 0 ? 0x8000 : 0) | ((127 + exponent) << 7) | ((size << (7 - exponent)) & 0x7f));
}

// factor * i + offset for i = 0..15, twice: a lookup takes five bits, of which the highest is no part of i
struct NibbleTable {
  alignas(64) uint16_t words[32];
  constexpr NibbleTable(int factor, int offset) : words() {
    for (int i = 0; i < 32; ++i) words[i] = bf16_of(factor * (i & 15) + offset);
  }
};

constexpr NibbleTable HIGHS(16, -120), LOWS(1, -8);

// R output rows for M rows of x. One chain of sums for either part of an output, whatever R and M.
template <int R, int M>
void codes_block(const uint16_t* x, int64_t stride, const DenseWeight& w, int64_t row, float* out, int64_t out_stride) {
  __m512 high[R][M], low[R][M];
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < M; ++i) high[r][i] = low[r][i] = _mm512_setzero_ps();
  }
  const __m512i highs = _mm512_load_si512(HIGHS.words), lows = _mm512_load_si512(LOWS.words);
  const int64_t k = w.k;
  const uint8_t* const weight = static_cast<const uint8_t*>(w.data) + row * k;
  const auto add = [&](int64_t at, __mmask32 mask) __attribute__((always_inline)) {
    __m512bh rows[M];
    for (int i = 0; i < M; ++i) rows[i] = (__m512bh)_mm512_loadu_si512(x + i * stride + at);
    for (int r = 0; r < R; ++r) {
      const uint8_t* const from = weight + r * k + at;
      const __m256i bytes = mask == ~0u ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
                                        : _mm256_maskz_loadu_epi8(mask, from);
      const __m512i codes = _mm512_cvtepu8_epi16(bytes);
      if (M == 1) __builtin_prefetch(from + R * k);
      const __m512bh l = (__m512bh)_mm512_permutexvar_epi16(codes, lows);
      const __m512bh h = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), highs);
      for (int i = 0; i < M; ++i) high[r][i] = _mm512_dpbf16_ps(high[r][i], h, rows[i]);
      for (int i = 0; i < M; ++i) low[r][i] = _mm512_dpbf16_ps(low[r][i], l, rows[i]);
    }
  };
  const int64_t whole = k / 32 * 32;
  for (int64_t at = 0; at < whole; at += 32) add(at, ~0u);
  if (whole < k) add(whole, ~0u >> (32 - (k - whole)));  // x is 0 beyond k
  for (int r = 0; r < R; ++r) {
    const float scale = load_bf16(w.scale[row + r]);
    for (int i = 0; i < M; ++i) {
      out[i * out_stride + row + r] = total(Floats(_mm512_add_ps(high[r][i], low[r][i]))) * scale;
    }
  }
}

template <int R, int M>
void codes_rows(const uint16_t* x, int64_t stride, const DenseWeight& w, int64_t begin, int64_t end, float* out,
                int64_t out_stride) {
  int64_t row = begin;
  for (; row + R <= end; row += R) codes_block<R, M>(x, stride, w, row, out, out_stride);
  for (; row < end; ++row) codes_block<1, M>(x, stride, w, row, out, out_stride);
}

void codes_bf16(const uint16_t* x, int64_t rows, int64_t stride, const DenseWeight& w, int64_t begin, int64_t end,
                float* out, int64_t out_stride) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    codes_rows<2, 4>(x + i * stride, stride, w, begin, end, out + i * out_stride, out_stride);
  }
  for (; i + 2 <= rows; i += 2) {
    codes_rows<4, 2>(x + i * stride, stride, w, begin, end, out + i * out_stride, out_stride);
  }
  if (i < rows) codes_rows<4, 1>(x + i * stride, stride, w, begin, end, out + i * out_stride, out_stride);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
