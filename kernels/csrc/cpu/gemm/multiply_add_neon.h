// multiply_add on 64-bit ARM: sums += codes of `blocks` (1 or more) k-blocks times the rows of a block.
#pragma once
#include <cstdint>

#include "common/integers.h"
#include "common/isa.h"
#include "common/simd_neon.h"
#include "common/unroll.h"
#include "gemm/vectors_neon.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

// Quads of six rows: 24 bytes.
struct Quads {
  int8x16_t four, two;
};

inline Quads quads_at(const char* from) {
  const int8_t* rows = reinterpret_cast<const int8_t*>(from);
  return {vld1q_s8(rows), vcombine_s8(vld1_s8(rows + 16), vdup_n_s8(0))};
}

// sums += codes of `blocks` (1 or more) k-blocks times the rows of a block.
#if DFQ_HAS_I8MM
// SMMLA: two rows of eight codes times two columns of eight codes are four sums. A pair of rows and a vector of columns
// take two registers, (row 0: columns 0 1, row 1: columns 0 1) and the same of columns 2 3.
inline int8x16_t zip_low(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}

inline int8x16_t zip_high(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}

inline Ints low_halves(Ints a, Ints b) {
  return vreinterpretq_s32_s64(vzip1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
}

inline Ints high_halves(Ints a, Ints b) {
  return vreinterpretq_s32_s64(vzip2q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
}

template <int WIDTH>
inline __attribute__((always_inline)) void multiply_add(Ints* sums, const char* rows, const uint8_t* tiles, int64_t,
                                                        int64_t blocks) {
  Ints sum[HEIGHT / 2][2 * WIDTH];
  unrolled<HEIGHT / 2 * WIDTH>(DFQ_EACH(i) {
    const int p = i / WIDTH, t = i % WIDTH;
    sum[p][2 * t] = low_halves(sums[2 * p * WIDTH + t], sums[(2 * p + 1) * WIDTH + t]);
    sum[p][2 * t + 1] = high_halves(sums[2 * p * WIDTH + t], sums[(2 * p + 1) * WIDTH + t]);
  });
  do {
    const Quads first = quads_at(rows), second = quads_at(rows + 4 * HEIGHT);
    const int8x16_t q[3] = {zip_low(first.four, second.four), zip_high(first.four, second.four),
                            zip_low(first.two, second.two)};
    for (int t = 0; t < WIDTH; ++t) {
      const uint8x16_t v = bytes_at(tiles + 16 * t);
      const int8x16_t low = low_codes(v), high = high_codes(v);
      const int8x16_t codes[2] = {zip_low(low, high), zip_high(low, high)};
      for (int p = 0; p < HEIGHT / 2; ++p) {
        sum[p][2 * t] = vmmlaq_s32(sum[p][2 * t], q[p], codes[0]);
        sum[p][2 * t + 1] = vmmlaq_s32(sum[p][2 * t + 1], q[p], codes[1]);
      }
      asm volatile("" ::: "memory");  // loads stay here: with 24 sums there are no registers for more
    }
    rows += 8 * HEIGHT, tiles += TILE16_BYTES;
  } while (--blocks > 0);
  unrolled<HEIGHT / 2 * WIDTH>(DFQ_EACH(i) {
    const int p = i / WIDTH, t = i % WIDTH;
    sums[2 * p * WIDTH + t] = low_halves(sum[p][2 * t], sum[p][2 * t + 1]);
    sums[(2 * p + 1) * WIDTH + t] = high_halves(sum[p][2 * t], sum[p][2 * t + 1]);
  });
}
#elif DFQ_HAS_DOTPROD
template <int WIDTH>
inline __attribute__((always_inline)) void multiply_add(Ints* sums, const char* rows, const uint8_t* tiles, int64_t,
                                                        int64_t blocks) {
  Ints sum[HEIGHT][WIDTH];
  unrolled<HEIGHT * WIDTH>(DFQ_EACH(i) { sum[i / WIDTH][i % WIDTH] = sums[i]; });
  do {
    for (int half = 0; half < 2; ++half) {
      const Quads q = quads_at(rows + half * 4 * HEIGHT);
      for (int t = 0; t < WIDTH; ++t) {
        const uint8x16_t v = bytes_at(tiles + 16 * t);
        const int8x16_t codes = half ? high_codes(v) : low_codes(v);
        sum[0][t] = plus_products<0>(sum[0][t], codes, q.four);
        sum[1][t] = plus_products<1>(sum[1][t], codes, q.four);
        sum[2][t] = plus_products<2>(sum[2][t], codes, q.four);
        sum[3][t] = plus_products<3>(sum[3][t], codes, q.four);
        sum[4][t] = plus_products<0>(sum[4][t], codes, q.two);
        sum[5][t] = plus_products<1>(sum[5][t], codes, q.two);
      }
      asm volatile("" ::: "memory");  // loads stay here: with 24 sums there are no registers for more
    }
    rows += 8 * HEIGHT, tiles += TILE16_BYTES;
  } while (--blocks > 0);
  unrolled<HEIGHT * WIDTH>(DFQ_EACH(i) { sums[i] = sum[i / WIDTH][i % WIDTH]; });
}
#else
// Sixteen products of at most 15 * 128 fit into 16 bits: those of eight k-blocks, for two rows at a time.
template <int WIDTH>
inline __attribute__((always_inline)) void multiply_add(Ints* sums, const char* rows, const uint8_t* tiles, int64_t,
                                                        int64_t blocks) {
  for (int64_t done = 0; done < blocks; done += 8) {
    const int64_t stop = minimum(blocks, done + 8);
    for (int row = 0; row < HEIGHT; row += 2) {
      int16x8_t sum[2][2 * WIDTH];
      for (int i = 0; i < 4 * WIDTH; ++i) sum[i / 2 / WIDTH][i % (2 * WIDTH)] = vdupq_n_s16(0);
      const char* quads = rows + done * 8 * HEIGHT + 4 * row;
      const uint8_t* in = tiles + done * TILE16_BYTES;
      for (int64_t j = done; j < stop; ++j, quads += 8 * HEIGHT, in += TILE16_BYTES) {
        for (int t = 0; t < WIDTH; ++t) {
          const uint8x16_t v = bytes_at(in + 16 * t);
          const int8x16_t low = low_codes(v), high = high_codes(v);
          for (int r = 0; r < 2; ++r) {
            const int8x16_t first = quad_at(quads + 4 * r), second = quad_at(quads + 4 * r + 4 * HEIGHT);
            int16x8_t &left = sum[r][2 * t], &right = sum[r][2 * t + 1];
            left = vmlal_s8(left, vget_low_s8(low), vget_low_s8(first));
            right = vmlal_high_s8(right, low, first);
            left = vmlal_s8(left, vget_low_s8(high), vget_low_s8(second));
            right = vmlal_high_s8(right, high, second);
          }
        }
      }
      for (int i = 0; i < 2 * WIDTH; ++i) {
        const int r = i / WIDTH, t = i % WIDTH;
        const Ints wide = vpaddq_s32(vpaddlq_s16(sum[r][2 * t]), vpaddlq_s16(sum[r][2 * t + 1]));
        sums[(row + r) * WIDTH + t] = vaddq_s32(sums[(row + r) * WIDTH + t], wide);
      }
    }
  }
}
#endif

}  // namespace
}  // namespace dfq::DFQ_ISA
