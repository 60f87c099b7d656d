// Activation rows made ready for the AVX-512 tiles: block by block, inside a block row by row.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/convert.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/simd_avx512.h"
#include "dfq_abi.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

// The bfloat16 values of the codes less 8, twice: five bits choose, the fifth belongs to the next code.
inline __m512i code_table() {
  alignas(64) uint16_t values[32];
  for (int i = 0; i < 32; ++i) values[i] = uint16_t(float_to_bits(float(i % 16 - 8)) >> 16);
  return _mm512_load_si512(values);
}

// Eight words k0 .. k7 become the pairs (k0, k2), (k4, k6), (k1, k3), (k5, k7), one dword each.
inline __m128i paired(__m128i words) {
  return _mm_shuffle_epi8(words, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
}

// Eight floats as bfloat16 `high` and what that leaves, so that high + low has 16 bits of mantissa or more.
inline void split(__m256 v, __m128i& high, __m128i& low) {
  const __m256i bits = _mm256_castps_si256(v), top = _mm256_and_si256(bits, _mm256_set1_epi32(int(0xffff0000)));
  const __mmask8 nan = _mm256_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  high = _mm256_cvtepi32_epi16(_mm256_srli_epi32(_mm256_mask_or_epi32(top, nan, top, _mm256_set1_epi32(0x400000)), 16));
  const __m256 rest = _mm256_sub_ps(v, _mm256_castsi256_ps(top));  // NaN for NaN and Inf, which `high` carries alone
  const __mmask8 finite = _mm256_cmp_ps_mask(rest, rest, _CMP_ORD_Q);
  low = __m128i(_mm256_cvtneps_pbh(_mm256_maskz_mov_ps(finite, rest)));
}

int64_t parts_of(int type) { return type == DFQ_BFLOAT16 ? 1 : 2; }

int64_t float_bytes(int64_t m, const Tile16Weight& w, int type) { return w.blocks * m * parts_of(type) * 16; }

inline float sum_of(__m128 v) {
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
}

// One row of bfloat16 as it is: [block][m][4 pairs]; sums by group where the weights have zero points.
void prepare_bf16(const uint16_t* x, int64_t m, const Tile16Weight& w, char* to, float* sums) {
  const int64_t depth = w.group / TILE16_DEPTH;
  const __m128i even = _mm_set1_epi32(int(0xffff0000));
  for (int64_t group = 0, j = 0; group < w.groups; ++group) {
    const int64_t last = group + 1 < w.groups ? (group + 1) * depth : w.blocks;
    __m128 sum = _mm_setzero_ps();
    for (; j < last; ++j, to += 16 * m) {
      const int64_t count = minimum(TILE16_DEPTH, w.k - j * TILE16_DEPTH);
      const __m128i v = count == TILE16_DEPTH
                            ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + j * TILE16_DEPTH))
                            : _mm_maskz_loadu_epi16(__mmask8((1u << count) - 1), x + j * TILE16_DEPTH);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), paired(v));
      if (w.zero) {
        const __m128 low = _mm_castsi128_ps(_mm_slli_epi32(v, 16)), high = _mm_castsi128_ps(_mm_and_si128(v, even));
        sum = _mm_add_ps(sum, _mm_add_ps(low, high));
      }
    }
    sums[group] = sum_of(sum);
  }
}

// One row of float or half in two parts: [block][m][2 parts][4 pairs].
void prepare_split(const void* x, int type, int64_t at, int64_t m, const Tile16Weight& w, char* to, float* sums) {
  constexpr int64_t CHUNK = 512;
  alignas(64) float buffer[CHUNK];
  const int64_t depth = w.group / TILE16_DEPTH, end = w.blocks * TILE16_DEPTH;
  int64_t group = 0;
  __m128 sum = _mm_setzero_ps();
  for (int64_t first = 0; first < end; first += CHUNK) {
    const int64_t count = minimum(CHUNK, end - first);
    load_floats(x, type, at + first, minimum(CHUNK, w.k - first), buffer);
    for (int64_t i = w.k - first; i < count; ++i) buffer[i] = 0.0f;
    for (int64_t i = 0; i < count; i += TILE16_DEPTH, to += 32 * m) {
      const __m256 v = _mm256_load_ps(buffer + i);
      __m128i high, low;
      split(v, high, low);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), paired(high));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 16), paired(low));
      const int64_t j = (first + i) / TILE16_DEPTH;
      if (group + 1 < w.groups && j == (group + 1) * depth) {
        sums[group++] = sum_of(sum);
        sum = _mm_setzero_ps();
      }
      sum = _mm_add_ps(sum, _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
    }
  }
  sums[group] = sum_of(sum);
}

void prepare_float(const FloatRows& x, const Tile16Weight& w, void* rows, float* x_sums) {
  char* to = static_cast<char*>(rows);
  for (int64_t r = 0; r < x.m; ++r) {
    if (x.type == DFQ_BFLOAT16) {
      prepare_bf16(static_cast<const uint16_t*>(x.x) + r * w.k, x.m, w, to + 16 * r, x_sums + r * w.groups);
    } else {
      prepare_split(x.x, x.type, r * w.k, x.m, w, to + 32 * r, x_sums + r * w.groups);
    }
  }
}

int64_t integer_bytes(int64_t m, const Tile16Weight& w) { return w.blocks * m * TILE16_DEPTH; }

// [block][m][8 codes], sums of codes by group
void prepare_integer(const IntegerRows& x, const Tile16Weight& w, void* rows, int32_t* q_sums) {
  const __m512i ones = _mm512_set1_epi8(1);
  for (int64_t r = 0; r < x.m; ++r) {
    const int8_t* q = x.q + r * w.k;
    char* to = static_cast<char*>(rows) + r * TILE16_DEPTH;
    const int64_t whole = w.k / TILE16_DEPTH;
    if (x.m == 1) {
      std::memcpy(to, q, size_t(whole) * TILE16_DEPTH);
      to += whole * TILE16_DEPTH;
    } else {
      for (int64_t j = 0; j < whole; ++j, to += x.m * TILE16_DEPTH) std::memcpy(to, q + j * TILE16_DEPTH, TILE16_DEPTH);
    }
    if (whole < w.blocks) {
      std::memset(to, 0, TILE16_DEPTH);
      std::memcpy(to, q + whole * TILE16_DEPTH, size_t(w.k - whole * TILE16_DEPTH));
    }
    for (int64_t group = 0; group < w.groups; ++group) {
      const int64_t last = minimum(w.k, (group + 1) * w.group);
      __m512i sum = _mm512_setzero_si512();
      for (int64_t i = group * w.group; i < last; i += 64) {
        const __mmask64 mask = last - i >= 64 ? ~__mmask64(0) : (__mmask64(1) << (last - i)) - 1;
        sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8(mask, q + i));
      }
      q_sums[r * w.groups + group] = _mm512_reduce_add_epi32(sum);
    }
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
