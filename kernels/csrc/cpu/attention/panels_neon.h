// Keys and values of a tile, unpacked on 64-bit ARM, and their integer products with digits:
//   unpack_keys   rows -> panels [position / 16][quad of the row][16 positions][4 codes]
//   unpack_values rows -> panels [16 values of the row][position / 4][16 values][4 positions]
//   multiply      out[line][16 p + i] = sum over quads j of a[line][4 j .. 4 j + 3] . panels[p][j][i][4]
// With 4 bits a 32-bit word of a row holds 8 codes; masked, its even codes are one quad and its odd codes the next.
// Panels hold codes less 128, so that they are signed bytes whatever their width; `multiply` adds 128 times the sum of
// the digits again.
#pragma once
#include <cstdint>
#include <cstring>

#include "attention/attention_kernels.h"
#include "attention/fixed_point.h"
#include "attention/tile_rows.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/simd_neon.h"

namespace dfq::DFQ_ISA {
namespace {

inline uint8x16_t load_row(const uint8_t* row, int64_t left) {  // 16 bytes of a row, zeros behind its end
  if (left >= 16) return vld1q_u8(row);
  alignas(16) uint8_t bytes[16] = {};
  std::memcpy(bytes, row, size_t(left));
  return vld1q_u8(bytes);
}

inline void row_pointers(const Rows& rows, int64_t begin, const uint8_t** row) {
  for (int64_t i = 0; i < 4; ++i) {
    row[i] = rows.at + minimum(begin + i, rows.count - 1) * rows.stride;
    for (int64_t byte = 0; byte < rows.bytes; byte += 64) __builtin_prefetch(row[i] + TILE * rows.stride + byte);
  }
}

inline uint8x16_t shifted(uint8x16_t codes) { return veorq_u8(codes, vdupq_n_u8(128)); }

inline uint32x4_t words(uint8x16_t v) { return vreinterpretq_u32_u8(v); }

inline void store_codes(uint8x16_t v, int bits, uint8_t* to, int64_t step) {
  if (bits == 8) return vst1q_u8(to, shifted(v));
  vst1q_u8(to, shifted(vandq_u8(v, vdupq_n_u8(15))));
  vst1q_u8(to + step, shifted(vshrq_n_u8(v, 4)));
}

void unpack_keys(const Rows& rows, uint8_t* panels) {
  const int64_t step = rows.bits == 4 ? 128 : 64, block = ceil_div(rows.bytes, 16) * 4 * step;
  const uint8_t* row[4];
  for (int64_t begin = 0; begin < ceil_div(rows.count, 16) * 16; begin += 4) {
    row_pointers(rows, begin, row);
    uint8_t* to = panels + begin / 16 * block + begin % 16 * 4;
    for (int64_t byte = 0; byte < rows.bytes; byte += 16, to += 4 * step) {
      uint32x4_t v[4];
      for (int i = 0; i < 4; ++i) v[i] = words(load_row(row[i] + byte, rows.bytes - byte));
      const uint32x4_t a = vzip1q_u32(v[0], v[2]), b = vzip2q_u32(v[0], v[2]);
      const uint32x4_t c = vzip1q_u32(v[1], v[3]), d = vzip2q_u32(v[1], v[3]);
      store_codes(vreinterpretq_u8_u32(vzip1q_u32(a, c)), rows.bits, to, 64);
      store_codes(vreinterpretq_u8_u32(vzip2q_u32(a, c)), rows.bits, to + step, 64);
      store_codes(vreinterpretq_u8_u32(vzip1q_u32(b, d)), rows.bits, to + 2 * step, 64);
      store_codes(vreinterpretq_u8_u32(vzip2q_u32(b, d)), rows.bits, to + 3 * step, 64);
    }
  }
}

void unpack_values(const Rows& rows, uint8_t* panels) {
  const int64_t panel = TILE * 16, step = rows.bits == 4 ? 2 * panel : panel;
  const uint8_t* row[4];
  for (int64_t begin = 0; begin < rows.count; begin += 4, panels += 64) {
    row_pointers(rows, begin, row);
    uint8_t* to = panels;
    for (int64_t byte = 0; byte < rows.bytes; byte += 16, to += step) {
      uint8x16x4_t low, high;
      for (int i = 0; i < 4; ++i) {
        const uint8x16_t v = load_row(row[i] + byte, rows.bytes - byte);
        low.val[i] = shifted(rows.bits == 8 ? v : vandq_u8(v, vdupq_n_u8(15)));
        high.val[i] = shifted(vshrq_n_u8(v, 4));
      }
      vst4q_u8(to, low);
      if (rows.bits == 4) vst4q_u8(to + panel, high);
    }
  }
}

// 128 times the sum of 4 * quads digits
inline int32_t sum_digits(const int8_t* a, int64_t quads) {
  int32_t sum = 0;
  for (int64_t i = 0; i < 4 * quads; ++i) sum += a[i];
  return 128 * sum;
}

#if DFQ_HAS_DOTPROD
template <int LINES>
void multiply_lines(const int8_t* a, int64_t stride, const uint8_t* panel, int64_t quads, const int32_t* start,
                    int32_t* out, int64_t out_stride) {
  int32x4_t sums[LINES][4];
  for (int i = 0; i < LINES; ++i) {
    for (int part = 0; part < 4; ++part) sums[i][part] = vdupq_n_s32(start[i]);
  }
  for (; quads > 0; --quads, a += 4, panel += 64) {
    int8x16_t codes[4];
    for (int part = 0; part < 4; ++part) codes[part] = vreinterpretq_s8_u8(vld1q_u8(panel + 16 * part));
    for (int i = 0; i < LINES; ++i) {
      const int8x16_t values = quad_at(a + i * stride);
      for (int part = 0; part < 4; ++part) sums[i][part] = vdotq_s32(sums[i][part], codes[part], values);
    }
  }
  for (int i = 0; i < LINES; ++i) {
    for (int part = 0; part < 4; ++part) vst1q_s32(out + i * out_stride + 4 * part, sums[i][part]);
  }
}
#else
// Products of two signed bytes fill 16 bits: pairs are added up in 32.
template <int LINES>
void multiply_lines(const int8_t* a, int64_t stride, const uint8_t* panel, int64_t quads, const int32_t* start,
                    int32_t* out, int64_t out_stride) {
  for (int side = 0; side < 2; ++side) {  // eight positions
    int32x4_t sums[LINES][4];
    for (int i = 0; i < LINES; ++i) {
      for (int part = 0; part < 4; ++part) sums[i][part] = vdupq_n_s32(0);
    }
    for (int64_t j = 0; j < quads; ++j) {
      const int8x16_t left = vreinterpretq_s8_u8(vld1q_u8(panel + 64 * j + 32 * side));
      const int8x16_t right = vreinterpretq_s8_u8(vld1q_u8(panel + 64 * j + 32 * side + 16));
      for (int i = 0; i < LINES; ++i) {
        const int8x16_t values = quad_at(a + i * stride + 4 * j);
        sums[i][0] = vpadalq_s16(sums[i][0], vmull_s8(vget_low_s8(left), vget_low_s8(values)));
        sums[i][1] = vpadalq_s16(sums[i][1], vmull_high_s8(left, values));
        sums[i][2] = vpadalq_s16(sums[i][2], vmull_s8(vget_low_s8(right), vget_low_s8(values)));
        sums[i][3] = vpadalq_s16(sums[i][3], vmull_high_s8(right, values));
      }
    }
    for (int i = 0; i < LINES; ++i) {
      int32_t* const to = out + i * out_stride + 8 * side;
      vst1q_s32(to, vaddq_s32(vpaddq_s32(sums[i][0], sums[i][1]), vdupq_n_s32(start[i])));
      vst1q_s32(to + 4, vaddq_s32(vpaddq_s32(sums[i][2], sums[i][3]), vdupq_n_s32(start[i])));
    }
  }
}
#endif

void multiply(const int8_t* a, int64_t stride, int64_t lines, const uint8_t* panels, int64_t quads, int64_t count,
              int64_t panel_quads, int32_t* out, int64_t out_stride) {
  for (int64_t line = 0; line < lines;) {
    const int64_t height = lines - line >= 4 ? 4 : lines - line >= 2 ? 2 : 1;
    const auto run = height == 4 ? multiply_lines<4> : height == 2 ? multiply_lines<2> : multiply_lines<1>;
    const int8_t* const from = a + line * stride;
    int32_t start[4];
    for (int64_t i = 0; i < height; ++i) start[i] = sum_digits(from + i * stride, quads);
    for (int64_t p = 0; p < count; ++p) {
      run(from, stride, panels + p * panel_quads * 64, quads, start, out + line * out_stride + 16 * p, out_stride);
    }
    line += height;
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
