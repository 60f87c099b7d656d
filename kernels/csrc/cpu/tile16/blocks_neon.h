// Products of a tile and up to STEP rows on 64-bit ARM: 64 bytes of a tile are four vectors of four output rows:
// integer_block and float_block. The rows come as decode_rows.h prepares them.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/height.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/simd_neon.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int64_t AHEAD = 1024;

inline void fetch(const uint8_t* in) { __builtin_prefetch(in + AHEAD); }

#if DFQ_HAS_DOTPROD
constexpr int64_t STEP = 4;  // rows times four vectors of sums

template <int ROWS>
void integer_rows(Height<ROWS>, const uint8_t* in, int64_t blocks, const int8_t* q, int64_t width,
                  int32_t (*sums)[TILE16_ROWS]) {
  int32x4_t sum[ROWS][4];
  for (int r = 0; r < ROWS; ++r) {
    for (int part = 0; part < 4; ++part) sum[r][part] = vdupq_n_s32(0);
  }
  for (; blocks > 0; --blocks, in += TILE16_BYTES, q += TILE16_DEPTH) {
    fetch(in);
    int8x16_t values[ROWS];  // eight codes of a row, twice
    for (int r = 0; r < ROWS; ++r) {
      int64_t eight;
      std::memcpy(&eight, q + r * width, 8);
      values[r] = vreinterpretq_s8_s64(vdupq_n_s64(eight));
    }
    for (int part = 0; part < 4; ++part) {
      const uint8x16_t v = bytes_at(in + 16 * part);
      const int8x16_t low = low_codes(v), high = high_codes(v);
      for (int r = 0; r < ROWS; ++r) sum[r][part] = plus_products<0>(sum[r][part], low, values[r]);
      for (int r = 0; r < ROWS; ++r) sum[r][part] = plus_products<1>(sum[r][part], high, values[r]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int part = 0; part < 4; ++part) vst1q_s32(sums[r] + 4 * part, sum[r][part]);
  }
}
#else
constexpr int64_t STEP = 2;  // rows times eight vectors of 16-bit sums

// Sixteen products of at most 15 * 128 fit into the 16 bits that they are added in: those of eight k-blocks.
template <int ROWS>
void integer_rows(Height<ROWS>, const uint8_t* in, int64_t blocks, const int8_t* q, int64_t width,
                  int32_t (*sums)[TILE16_ROWS]) {
  int32x4_t total[ROWS][4];
  for (int r = 0; r < ROWS; ++r) {
    for (int part = 0; part < 4; ++part) total[r][part] = vdupq_n_s32(0);
  }
  while (blocks > 0) {
    int64_t burst = minimum(blocks, 8);
    blocks -= burst;
    int16x8_t sum[ROWS][8];
    for (int i = 0; i < ROWS * 8; ++i) sum[i / 8][i % 8] = vdupq_n_s16(0);
    for (; burst > 0; --burst, in += TILE16_BYTES, q += TILE16_DEPTH) {
      fetch(in);
      for (int part = 0; part < 4; ++part) {
        const uint8x16_t v = bytes_at(in + 16 * part);
        const int8x16_t low = low_codes(v), high = high_codes(v);
        for (int r = 0; r < ROWS; ++r) {
          const int8x16_t first = quad_at(q + r * width), second = quad_at(q + r * width + 4);
          int16x8_t &left = sum[r][2 * part], &right = sum[r][2 * part + 1];
          left = vmlal_s8(left, vget_low_s8(low), vget_low_s8(first));
          right = vmlal_high_s8(right, low, first);
          left = vmlal_s8(left, vget_low_s8(high), vget_low_s8(second));
          right = vmlal_high_s8(right, high, second);
        }
      }
    }
    for (int i = 0; i < ROWS * 4; ++i) {
      const int16x8_t* const pair = sum[i / 4] + 2 * (i % 4);
      const int32x4_t wide = vpaddq_s32(vpaddlq_s16(pair[0]), vpaddlq_s16(pair[1]));
      total[i / 4][i % 4] = vaddq_s32(total[i / 4][i % 4], wide);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int part = 0; part < 4; ++part) vst1q_s32(sums[r] + 4 * part, total[r][part]);
  }
}
#endif

void integer_block(const uint8_t* in, int64_t blocks, const int8_t* q, int64_t width, int64_t count,
                   int32_t (*sums)[TILE16_ROWS]) {
  with_height(count, [&](auto rows) { integer_rows(rows, in, blocks, q, width, sums); });
}

// High and low byte of the bfloat16 (the upper half of the float) of u - 8, u = 0 .. 15.
alignas(16) const uint8_t HIGH_BYTES[16] = {0xc1, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xbf,
                                            0x00, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40};
alignas(16) const uint8_t LOW_BYTES[16] = {0x00, 0xe0, 0xc0, 0xa0, 0x80, 0x40, 0x00, 0x80,
                                           0x00, 0x80, 0x00, 0x40, 0x80, 0xa0, 0xc0, 0xe0};

// The columns of a word of tile bytes, paired: of each row 0 1, then of each row 2 3.
alignas(16) const uint8_t PAIRS[16] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};

// Codes u - 8 of four rows and four columns as bfloat16, by look-up: pairs[i] holds columns 2 i and 2 i + 1 of each
// row.
inline uint16x8x2_t pairs_of(uint8x16_t codes) {
  const uint8x16_t low = vqtbl1q_u8(vld1q_u8(LOW_BYTES), codes), high = vqtbl1q_u8(vld1q_u8(HIGH_BYTES), codes);
  return {{vreinterpretq_u16_u8(vzip1q_u8(low, high)), vreinterpretq_u16_u8(vzip2q_u8(low, high))}};
}

inline float32x4_t even_of(uint16x8_t pair) {  // the first of each pair as float
  return vreinterpretq_f32_u16(vtrn1q_u16(vdupq_n_u16(0), pair));
}

inline float32x4_t odd_of(uint16x8_t pair) {
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u16(pair), vdupq_n_u32(0xffff0000u)));
}

template <int ROWS>
void float_rows(Height<ROWS>, const uint8_t* in, int64_t blocks, const float* x, int64_t width,
                float (*sums)[TILE16_ROWS]) {
  const uint8x16_t order = vld1q_u8(PAIRS);
  float32x4_t sum[ROWS][4];
  for (int r = 0; r < ROWS; ++r) {
    for (int part = 0; part < 4; ++part) sum[r][part] = vdupq_n_f32(0.0f);
  }
  for (; blocks > 0; --blocks, in += TILE16_BYTES, x += TILE16_DEPTH) {
    fetch(in);
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) {
      const uint8x16_t v = vqtbl1q_u8(bytes_at(in + 16 * part), order);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {  // four columns
        const uint16x8x2_t pairs = pairs_of(half ? vshrq_n_u8(v, 4) : vandq_u8(v, vdupq_n_u8(15)));
        const float32x4_t w[4] = {even_of(pairs.val[0]), odd_of(pairs.val[0]), even_of(pairs.val[1]),
                                  odd_of(pairs.val[1])};
        for (int r = 0; r < ROWS; ++r) {
          const float32x4_t values = vld1q_f32(x + r * width + 4 * half);
          sum[r][part] = vfmaq_laneq_f32(sum[r][part], w[0], values, 0);
          sum[r][part] = vfmaq_laneq_f32(sum[r][part], w[1], values, 1);
          sum[r][part] = vfmaq_laneq_f32(sum[r][part], w[2], values, 2);
          sum[r][part] = vfmaq_laneq_f32(sum[r][part], w[3], values, 3);
        }
        if (ROWS > 2) asm volatile("" ::: "memory");  // gcc would load all values at once, and spill
      }
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int part = 0; part < 4; ++part) vst1q_f32(sums[r] + 4 * part, sum[r][part]);
  }
}

void float_block(const uint8_t* in, int64_t blocks, const float* x, int64_t width, int64_t count,
                 float (*sums)[TILE16_ROWS]) {
  with_height(count, [&](auto rows) { float_rows(rows, in, blocks, x, width, sums); });
}

#if DFQ_HAS_I8MM
// Rows of bfloat16: BFDOT adds the products of a pair.
template <int ROWS>
void narrow_rows(Height<ROWS>, const uint8_t* in, int64_t blocks, const uint16_t* x, int64_t width,
                 float (*sums)[TILE16_ROWS]) {
  const uint8x16_t order = vld1q_u8(PAIRS);
  float32x4_t sum[ROWS][4];
  for (int r = 0; r < ROWS; ++r) {
    for (int part = 0; part < 4; ++part) sum[r][part] = vdupq_n_f32(0.0f);
  }
  for (; blocks > 0; --blocks, in += TILE16_BYTES, x += TILE16_DEPTH) {
    fetch(in);
    bfloat16x8_t values[ROWS];
    for (int r = 0; r < ROWS; ++r) values[r] = vreinterpretq_bf16_u16(vld1q_u16(x + r * width));
    for (int part = 0; part < 4; ++part) {
      const uint8x16_t v = vqtbl1q_u8(bytes_at(in + 16 * part), order);
      const uint16x8x2_t low = pairs_of(vandq_u8(v, vdupq_n_u8(15))), high = pairs_of(vshrq_n_u8(v, 4));
      for (int r = 0; r < ROWS; ++r) {
        float32x4_t& to = sum[r][part];
        to = vbfdotq_laneq_f32(to, vreinterpretq_bf16_u16(low.val[0]), values[r], 0);
        to = vbfdotq_laneq_f32(to, vreinterpretq_bf16_u16(low.val[1]), values[r], 1);
        to = vbfdotq_laneq_f32(to, vreinterpretq_bf16_u16(high.val[0]), values[r], 2);
        to = vbfdotq_laneq_f32(to, vreinterpretq_bf16_u16(high.val[1]), values[r], 3);
      }
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int part = 0; part < 4; ++part) vst1q_f32(sums[r] + 4 * part, sum[r][part]);
  }
}

void float_block(const uint8_t* in, int64_t blocks, const uint16_t* x, int64_t width, int64_t count,
                 float (*sums)[TILE16_ROWS]) {
  with_height(count, [&](auto rows) { narrow_rows(rows, in, blocks, x, width, sums); });
}
#endif

}  // namespace
}  // namespace dfq::DFQ_ISA
