// Products of a tile and up to STEP rows with AVX2, two halves of eight output rows: integer_block and float_block. The
// rows come as decode_rows.h prepares them.
#pragma once
#include <cstdint>

#include "common/height.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/simd_avx2.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int64_t STEP = 4;     // rows times two halves of sums, and the operands: sixteen registers
constexpr int64_t AHEAD = 1024;

inline void fetch(const uint8_t* in) { _mm_prefetch(reinterpret_cast<const char*>(in + AHEAD), _MM_HINT_T1); }

template <int ROWS>
void integer_rows(Height<ROWS>, const uint8_t* in, int64_t blocks, const int8_t* q, int64_t width,
                  int32_t (*sums)[TILE16_ROWS]) {
  const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256i total[ROWS][2];
  for (int r = 0; r < ROWS; ++r) total[r][0] = total[r][1] = _mm256_setzero_si256();
  for (int64_t j = 0; j < blocks;) {
    const int64_t stop = minimum(blocks, j + 4);  // four times four products of at most 15 * 128 fit into 16 bits
    __m256i sum[ROWS][2];
    for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    for (; j < stop; ++j, in += TILE16_BYTES, q += TILE16_DEPTH) {
      fetch(in);
      for (int half = 0; half < 2; ++half) {
        const __m256i v = load(in + 32 * half), low = _mm256_and_si256(v, nibble);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
        for (int r = 0; r < ROWS; ++r) {
          const __m256i first = _mm256_maddubs_epi16(low, dword_x8(q + r * width));
          const __m256i second = _mm256_maddubs_epi16(high, dword_x8(q + r * width + 4));
          sum[r][half] = _mm256_add_epi16(sum[r][half], _mm256_add_epi16(first, second));
        }
      }
    }
    for (int r = 0; r < ROWS; ++r) {
      for (int half = 0; half < 2; ++half) {
        total[r][half] = _mm256_add_epi32(total[r][half], _mm256_madd_epi16(sum[r][half], ones));
      }
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int half = 0; half < 2; ++half) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums[r] + 8 * half), total[r][half]);
    }
  }
}

void integer_block(const uint8_t* in, int64_t blocks, const int8_t* q, int64_t width, int64_t count,
                   int32_t (*sums)[TILE16_ROWS]) {
  with_height(count, [&](auto rows) { integer_rows(rows, in, blocks, q, width, sums); });
}

template <int ROWS>
void float_rows(Height<ROWS>, const uint8_t* in, int64_t blocks, const float* x, int64_t width,
                float (*sums)[TILE16_ROWS]) {
  const __m256i nibble = _mm256_set1_epi32(15), eight = _mm256_set1_epi32(8);
  __m256 sum[ROWS][2];
  for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
  for (int64_t j = 0; j < blocks; ++j, in += TILE16_BYTES, x += TILE16_DEPTH) {
    fetch(in);
    for (int half = 0; half < 2; ++half) {
      __m256i v = load(in + 32 * half);
      for (int c = 0; c < 8; ++c, v = _mm256_srli_epi32(v, 4)) {
        const int column = c / 2 + c % 2 * 4;  // nibbles lie in the order k0 k4 k1 k5 k2 k6 k3 k7
        const __m256 code = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_and_si256(v, nibble), eight));
        for (int r = 0; r < ROWS; ++r) {
          sum[r][half] = _mm256_fmadd_ps(code, _mm256_broadcast_ss(x + r * width + column), sum[r][half]);
        }
      }
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int half = 0; half < 2; ++half) _mm256_store_ps(sums[r] + 8 * half, sum[r][half]);
  }
}

void float_block(const uint8_t* in, int64_t blocks, const float* x, int64_t width, int64_t count,
                 float (*sums)[TILE16_ROWS]) {
  with_height(count, [&](auto rows) { float_rows(rows, in, blocks, x, width, sums); });
}

}  // namespace
}  // namespace dfq::DFQ_ISA
