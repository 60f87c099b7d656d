// Panels of quads of codes (tiles.h) with AVX2.
#pragma once
#include <cstdint>
#include <cstring>

#include "canonical/canonical_kernels.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/simd_avx2.h"
#include "rows/packing.h"

namespace dfq::DFQ_ISA {
namespace {

// 32 codes in order from 16 bytes
inline __m256i unpack32(const uint8_t* packed) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)), mask = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(bytes, mask), high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
  return _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
}

// 8 rows of 8 quads become 8 quads of 8 rows.
inline void transpose(__m256i v[8]) {
  __m256i a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
    a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
    v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
  }
}

void build_quads(const Weight& weight, int64_t column, int64_t first, int64_t count, uint8_t* quads) {
  const int64_t bytes = (weight.k + 1) / 2;
  for (int64_t n = 0; n < PANEL_N; n += 8) {
    const int64_t width = minimum(8, weight.n - column - n);
    const uint8_t* rows = weight.packed + (column + n) * bytes;
    for (int64_t j = 0; j < count; j += 32) {
      __m256i v[8];
      if (width == 8 && count - j >= 32 && first % 2 == 0) {
        for (int64_t i = 0; i < 8; ++i) v[i] = unpack32(rows + i * bytes + (first + j) / 2);
      } else {
        alignas(32) uint8_t codes[32];
        for (int64_t i = 0; i < 8; ++i) {
          std::memset(codes, 0, 32);
          if (i < width) unpack_codes(rows + i * bytes, first + j, minimum(32, count - j), 4, codes);
          v[i] = load(codes);
        }
      }
      transpose(v);
      const int64_t filled = minimum(8, (count - j + 3) / 4);
      for (int64_t i = 0; i < filled; ++i) store(quads + ((j / 4 + i) * PANEL_N + n) * 4, v[i]);
    }
  }
}

void sum_quads(const uint8_t* quads, int64_t count, int32_t* sums) {
  const __m256i bytes = _mm256_set1_epi8(1), words = _mm256_set1_epi16(1);
  __m256i low = load(sums), high = load(sums + 8);
  for (int64_t j = 0; j < count; j += 4, quads += 4 * PANEL_N) {
    low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_maddubs_epi16(load(quads), bytes), words));
    high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_maddubs_epi16(load(quads + 32), bytes), words));
  }
  store(sums, low);
  store(sums + 8, high);
}

void spread_quads(const uint8_t* quads, int64_t count, const float* scale, const int32_t* zero, float* to) {
  const __m256i mask = _mm256_set1_epi32(255), zeros[2] = {load(zero), load(zero + 8)};
  const __m256 scales[2] = {_mm256_loadu_ps(scale), _mm256_loadu_ps(scale + 8)};
  for (int64_t j = 0; j < count; j += 4, quads += 4 * PANEL_N) {
    __m256i v[2] = {load(quads), load(quads + 32)};
    const int64_t filled = minimum(4, count - j);
    for (int64_t i = 0; i < filled; ++i, to += PANEL_N) {
      for (int half = 0; half < 2; ++half) {
        const __m256i code = _mm256_sub_epi32(_mm256_and_si256(v[half], mask), zeros[half]);
        _mm256_storeu_ps(to + 8 * half, _mm256_mul_ps(_mm256_cvtepi32_ps(code), scales[half]));
        v[half] = _mm256_srli_epi32(v[half], 8);
      }
    }
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
