// Products of the tile16 family with many rows on 64-bit ARM: blocks of 6 rows times one tile, four vectors of 4 columns.
// Needs arm.inc.

constexpr int HEIGHT = 6, VECTORS = 4, LANES = 4;
using Ints = int32x4_t;
using Floats = float32x4_t;

inline Ints ints_at(const void* from) { return vld1q_s32(static_cast<const int32_t*>(from)); }
inline Floats floats_at(const float* from) { return vld1q_f32(from); }
inline void put(void* to, Ints v) { vst1q_s32(static_cast<int32_t*>(to), v); }
inline void put(float* to, Floats v) { vst1q_f32(to, v); }
inline Ints same(int32_t value) { return vdupq_n_s32(value); }
inline Ints minus(Ints a, Ints b) { return vsubq_s32(a, b); }
inline Ints product(Ints a, Ints b) { return vmulq_s32(a, b); }
inline Floats plus(Floats a, Floats b) { return vaddq_f32(a, b); }
inline Floats product(Floats a, Floats b) { return vmulq_f32(a, b); }
inline Floats to_floats(Ints v) { return vcvtq_f32_s32(v); }
inline Ints pair(Ints low, Ints high) { return vorrq_s32(low, vshlq_n_s32(high, 16)); }
inline Ints low_nibble(Ints v) { return vandq_s32(v, same(15)); }
inline Ints without_nibble(Ints v) { return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(v), 4)); }

// Of 16-bit pairs: the sum of both products.
inline Ints pair_product(Ints a, Ints b) {
  const int16x8_t left = vreinterpretq_s16_s32(a), right = vreinterpretq_s16_s32(b);
  return vpaddq_s32(vmull_s16(vget_low_s16(left), vget_low_s16(right)), vmull_high_s16(left, right));
}

// bfloat16 values as float
inline Floats widen(const uint16_t* from) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16)); }

inline Ints zeros_of(const TiledWeight& w, int64_t group, int64_t column) {
  if (!w.zero) return same(8);
  uint32_t four;
  std::memcpy(&four, w.zero + group * w.n16 + column, 4);
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}

#include "gemm/epilogue.h"

// Quads of six rows: 24 bytes.
struct Quads {
  int8x16_t four, two;
};

inline Quads quads_at(const char* from) {
  const int8_t* rows = reinterpret_cast<const int8_t*>(from);
  return {vld1q_s8(rows), vcombine_s8(vld1_s8(rows + 16), vdup_n_s8(0))};
}

// sums += codes of `blocks` (1 or more) k-blocks times the rows of a block.
#if defined(__ARM_FEATURE_MATMUL_INT8)
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
inline __attribute__((always_inline)) void multiply_add(Ints* sums, const char* rows, const uint8_t* tiles, int64_t, int64_t blocks) {
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
    rows += 8 * HEIGHT, tiles += TILED_BYTES;
  } while (--blocks > 0);
  unrolled<HEIGHT / 2 * WIDTH>(DFQ_EACH(i) {
    const int p = i / WIDTH, t = i % WIDTH;
    sums[2 * p * WIDTH + t] = low_halves(sum[p][2 * t], sum[p][2 * t + 1]);
    sums[(2 * p + 1) * WIDTH + t] = high_halves(sum[p][2 * t], sum[p][2 * t + 1]);
  });
}
#elif defined(__ARM_FEATURE_DOTPROD)
template <int WIDTH>
inline __attribute__((always_inline)) void multiply_add(Ints* sums, const char* rows, const uint8_t* tiles, int64_t, int64_t blocks) {
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
    rows += 8 * HEIGHT, tiles += TILED_BYTES;
  } while (--blocks > 0);
  unrolled<HEIGHT * WIDTH>(DFQ_EACH(i) { sums[i] = sum[i / WIDTH][i % WIDTH]; });
}
#else
// Sixteen products of at most 15 * 128 fit into 16 bits: those of eight k-blocks, for two rows at a time.
template <int WIDTH>
inline __attribute__((always_inline)) void multiply_add(Ints* sums, const char* rows, const uint8_t* tiles, int64_t, int64_t blocks) {
  for (int64_t done = 0; done < blocks; done += 8) {
    const int64_t stop = least(blocks, done + 8);
    for (int row = 0; row < HEIGHT; row += 2) {
      int16x8_t sum[2][2 * WIDTH];
      for (int i = 0; i < 4 * WIDTH; ++i) sum[i / 2 / WIDTH][i % (2 * WIDTH)] = vdupq_n_s16(0);
      const char* quads = rows + done * 8 * HEIGHT + 4 * row;
      const uint8_t* in = tiles + done * TILED_BYTES;
      for (int64_t j = done; j < stop; ++j, quads += 8 * HEIGHT, in += TILED_BYTES) {
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

#include "gemm/integer_rows.h"

#include "gemm/integer.h"

#include "gemm/float32.h"

void float_block(const float* rows, const float* panel, int64_t depth, float* totals) {
  Floats sum[HEIGHT][VECTORS];
  unrolled<HEIGHT * VECTORS>(DFQ_EACH(i) { sum[i / VECTORS][i % VECTORS] = floats_at(totals + i * LANES); });
  do {
    const Floats four = vld1q_f32(rows);
    const float32x2_t two = vld1_f32(rows + 4);
    for (int t = 0; t < VECTORS; ++t) {
      const Floats w = vld1q_f32(panel + t * LANES);
      sum[0][t] = vfmaq_laneq_f32(sum[0][t], w, four, 0);
      sum[1][t] = vfmaq_laneq_f32(sum[1][t], w, four, 1);
      sum[2][t] = vfmaq_laneq_f32(sum[2][t], w, four, 2);
      sum[3][t] = vfmaq_laneq_f32(sum[3][t], w, four, 3);
      sum[4][t] = vfmaq_lane_f32(sum[4][t], w, two, 0);
      sum[5][t] = vfmaq_lane_f32(sum[5][t], w, two, 1);
    }
    rows += HEIGHT, panel += ROW_VALUES;
  } while (--depth > 0);
  unrolled<HEIGHT * VECTORS>(DFQ_EACH(i) { put(totals + i * LANES, sum[i / VECTORS][i % VECTORS]); });
}

void multiply_integer(const GemmCall& call, int64_t first, int64_t last, int64_t begin, int64_t end, void* work) {
  for (; first < last; ++first) integer_columns<VECTORS>(call, first, begin, end, static_cast<float*>(work));
}

// totals, sums of one group that is longer than a piece, what a piece of the weight becomes
int64_t work_bytes(int64_t blocks) { return 2 * blocks * BLOCK_VALUES * 4 + WEIGHT_BYTES; }
