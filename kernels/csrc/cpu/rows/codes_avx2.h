// Loops over the values of a row with AVX2: its range, and its codes. extend: the range, `count` values further;
// write_codes: one byte per code, signed or not.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "common/simd_avx2.h"
#include "rows/range.h"

namespace dfq::DFQ_ISA {
namespace {

// Written out: the compiler turns the comparisons of the portable loops into masks instead of min and max.
void extend(Range& range, const float* x, int64_t count) {
  const __m256 nothing = _mm256_setzero_ps();
  __m256 low[2], high[2], bad[2];
  for (int h = 0; h < 2; ++h) {
    low[h] = _mm256_loadu_ps(range.low + 8 * h);
    high[h] = _mm256_loadu_ps(range.high + 8 * h);
    bad[h] = _mm256_loadu_ps(range.bad + 8 * h);
  }
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    for (int h = 0; h < 2; ++h) {
      const __m256 v = _mm256_loadu_ps(x + i + 8 * h);
      low[h] = _mm256_min_ps(v, low[h]);
      high[h] = _mm256_max_ps(v, high[h]);
      bad[h] = _mm256_add_ps(bad[h], _mm256_mul_ps(v, nothing));
    }
  }
  for (int h = 0; h < 2; ++h) {
    _mm256_storeu_ps(range.low + 8 * h, low[h]);
    _mm256_storeu_ps(range.high + 8 * h, high[h]);
    _mm256_storeu_ps(range.bad + 8 * h, bad[h]);
  }
  for (; i < count; ++i) extend_one(range, 0, x[i]);
}

// One byte per code, signed or not: the low byte of the integer.
void write_codes(const float* x, int64_t count, float scale, float zero, float floor, float ceil, uint8_t* to) {
  const __m256 scales = _mm256_set1_ps(scale), zeros = _mm256_set1_ps(zero);
  const __m256 floors = _mm256_set1_ps(floor), ceils = _mm256_set1_ps(ceil), limit = _mm256_set1_ps(1024.0f);
  const __m256i byte = _mm256_set1_epi32(255), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    __m256i codes[4];
    for (int part = 0; part < 4; ++part) {
      __m256 v = _mm256_div_ps(_mm256_loadu_ps(x + i + 8 * part), scales);
      v = _mm256_min_ps(_mm256_max_ps(v, _mm256_sub_ps(_mm256_setzero_ps(), limit)), limit);
      v = _mm256_add_ps(_mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), zeros);
      v = _mm256_min_ps(_mm256_max_ps(v, floors), ceils);
      codes[part] = _mm256_and_si256(_mm256_cvtps_epi32(v), byte);
    }
    const __m256i low = _mm256_packus_epi32(codes[0], codes[1]), high = _mm256_packus_epi32(codes[2], codes[3]);
    store(to + i, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order));
  }
  for (; i < count; ++i) to[i] = uint8_t(int32_t(code_of(x[i], scale, zero, floor, ceil)));
}

}  // namespace
}  // namespace dfq::DFQ_ISA
