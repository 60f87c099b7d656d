// Products of a block of rows and a panel of 16 outputs (tiles.h) with AVX2.
#pragma once
#include <cstdint>
#include <cstring>

#include "canonical/canonical_kernels.h"
#include "common/height.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/simd_avx2.h"

namespace dfq::DFQ_ISA {
namespace {

template <int ROWS>
void float_micro(Height<ROWS>, const float* x, const float* panel, int64_t depth, float* sums) {
  __m256 low[ROWS], high[ROWS];
  for (int r = 0; r < ROWS; ++r) low[r] = high[r] = _mm256_setzero_ps();
  for (int64_t j = 0; j < depth; ++j, x += ROWS, panel += PANEL_N) {
    const __m256 left = _mm256_loadu_ps(panel), right = _mm256_loadu_ps(panel + 8);
    for (int r = 0; r < ROWS; ++r) {
      const __m256 value = _mm256_broadcast_ss(x + r);
      low[r] = _mm256_fmadd_ps(value, left, low[r]);
      high[r] = _mm256_fmadd_ps(value, right, high[r]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    float* to = sums + r * TILE_N;
    _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), low[r]));
    _mm256_storeu_ps(to + 8, _mm256_add_ps(_mm256_loadu_ps(to + 8), high[r]));
  }
}

// u8 weights times s8 activations, added in pairs to 16 bits, `burst` times before they could overflow, then widened.
template <int ROWS>
void integer_micro(Height<ROWS>, const int8_t* q, const uint8_t* panel, int64_t quads, int burst, bool fresh,
                   int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t j = 0; j < quads;) {
    const int64_t stop = minimum(quads, j + burst);
    __m256i low[ROWS], high[ROWS];
    for (int r = 0; r < ROWS; ++r) low[r] = high[r] = _mm256_setzero_si256();
    for (; j < stop; ++j, q += 4 * ROWS, panel += 4 * PANEL_N) {
      const __m256i left = load(panel), right = load(panel + 32);
      for (int r = 0; r < ROWS; ++r) {
        const __m256i value = dword_x8(q + 4 * r);
        low[r] = _mm256_add_epi16(low[r], _mm256_maddubs_epi16(left, value));
        high[r] = _mm256_add_epi16(high[r], _mm256_maddubs_epi16(right, value));
      }
    }
    for (int r = 0; r < ROWS; ++r) {
      int32_t* to = sums + r * TILE_N;
      __m256i wide_low = _mm256_madd_epi16(low[r], ones), wide_high = _mm256_madd_epi16(high[r], ones);
      if (!fresh) {
        wide_low = _mm256_add_epi32(wide_low, load(to));
        wide_high = _mm256_add_epi32(wide_high, load(to + 8));
      }
      store(to, wide_low);
      store(to + 8, wide_high);
    }
    fresh = false;
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
