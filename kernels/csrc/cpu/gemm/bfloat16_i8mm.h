// Floating products of bfloat16 rows with BFMMLA: two rows times two columns of four values each are four sums. Codes
// less their zero point are exact in bfloat16; scales come in where a group, or a piece of the weight, ends.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/convert.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/simd_neon.h"
#include "common/unroll.h"
#include "dfq_abi.h"
#include "gemm/epilogue.h"
#include "gemm/float32.h"
#include "gemm/gemm_kernels.h"
#include "gemm/integer.h"
#include "gemm/integer_rows.h"
#include "gemm/multiply_add.h"
#include "gemm/vectors_neon.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int64_t QUAD_ROWS = 4 * HEIGHT, QUAD_COLUMNS = 4 * ROW_VALUES;  // values of four columns of k

int64_t narrow_bytes(const Tile16Weight& w) { return HEIGHT * w.blocks * TILE16_DEPTH * 2; }

// Row block of a piece of k-blocks at .. stop - 1: [piece][block][quad of k][row][4 values].
uint16_t* narrow_rows(const GemmCall& call, int64_t block, int64_t at, int64_t stop) {
  return reinterpret_cast<uint16_t*>(call.rows) + (at * call.blocks + block * (stop - at)) * TILE16_DEPTH * HEIGHT;
}

void pack_narrow(const GemmCall& call, int64_t begin, int64_t end) {
  const Tile16Weight& w = *call.weight;
  const int64_t piece = FLOAT_DEPTH / TILE16_DEPTH;
  for (int64_t block = begin; block < end; ++block) {
    for (int64_t at = 0; at < w.blocks; at += piece) {
      const int64_t stop = minimum(w.blocks, at + piece);
      uint16_t* to = narrow_rows(call, block, at, stop);
      for (int64_t k = at * TILE16_DEPTH; k < stop * TILE16_DEPTH; k += 4, to += QUAD_ROWS) {
        for (int64_t r = 0; r < HEIGHT; ++r) {
          const int64_t row = block * HEIGHT + r, count = row < call.m ? minimum(4, w.k - k) : 0;
          std::memset(to + 4 * r, 0, 8);
          if (count > 0)
            std::memcpy(to + 4 * r, static_cast<const uint16_t*>(call.x) + row * w.k + k, size_t(count) * 2);
        }
      }
    }
  }
}

// Low and high byte of the bfloat16 of i - 15, i = 0 .. 30.
struct ByteTables {
  alignas(16) uint8_t low[32], high[32];

  ByteTables() {
    for (int i = 0; i < 32; ++i) {
      const uint32_t bits = float_to_bits(float(i - 15));
      low[i] = uint8_t(bits >> 16), high[i] = uint8_t(bits >> 24);
    }
  }
};

// k-blocks first .. first + count - 1 of one group -> code - zero as [quad of k][column][4 values]
void unpack_narrow(const Tile16Weight& w, int64_t tile, int64_t group, int64_t first, int64_t count, uint16_t* to) {
  const ByteTables bytes;
  const uint8x16x2_t lows = {{vld1q_u8(bytes.low), vld1q_u8(bytes.low + 16)}};
  const uint8x16x2_t highs = {{vld1q_u8(bytes.high), vld1q_u8(bytes.high + 16)}};
  for (int t = 0; t < VECTORS; ++t) {
    const int64_t column = tile * TILE16_ROWS + t * LANES;
    const Ints offset = minus(same(15), zeros_of(w, group, column));
    const uint8x16_t offsets = vreinterpretq_u8_s32(product(offset, same(0x01010101)));
    const uint8_t* from = w.tiles + (tile * w.blocks + first) * TILE16_BYTES + 16 * t;
    for (int64_t j = 0; j < count; ++j) {
      const uint8x16_t v = bytes_at(from + j * TILE16_BYTES);
      for (int half = 0; half < 2; ++half) {
        const uint8x16_t codes = vaddq_u8(half ? vshrq_n_u8(v, 4) : vandq_u8(v, vdupq_n_u8(15)), offsets);
        const uint8x16_t low = vqtbl2q_u8(lows, codes), high = vqtbl2q_u8(highs, codes);
        uint16_t* const out = to + (2 * j + half) * QUAD_COLUMNS + 16 * t;
        vst1q_u16(out, vreinterpretq_u16_u8(vzip1q_u8(low, high)));
        vst1q_u16(out + 8, vreinterpretq_u16_u8(vzip2q_u8(low, high)));
      }
    }
  }
}

inline Floats low_halves(Floats a, Floats b) {
  return vreinterpretq_f32_s32(low_halves(vreinterpretq_s32_f32(a), vreinterpretq_s32_f32(b)));
}

inline Floats high_halves(Floats a, Floats b) {
  return vreinterpretq_f32_s32(high_halves(vreinterpretq_s32_f32(a), vreinterpretq_s32_f32(b)));
}

inline bfloat16x8_t narrow_at(const uint16_t* from) { return vreinterpretq_bf16_u16(vld1q_u16(from)); }

// totals += scale * (rows times panel), `quads` (1 or more) quads of columns of k
void narrow_block(const uint16_t* rows, const uint16_t* panel, int64_t quads, const float* scale, float* totals) {
  Floats sum[HEIGHT / 2][2 * VECTORS];
  unrolled<HEIGHT * VECTORS>(DFQ_EACH(i) { sum[i / (2 * VECTORS)][i % (2 * VECTORS)] = vdupq_n_f32(0.0f); });
  do {
    bfloat16x8_t x[HEIGHT / 2];
    for (int p = 0; p < HEIGHT / 2; ++p) x[p] = narrow_at(rows + 8 * p);
    for (int c = 0; c < 2 * VECTORS; ++c) {
      const bfloat16x8_t codes = narrow_at(panel + 8 * c);
      for (int p = 0; p < HEIGHT / 2; ++p) sum[p][c] = vbfmmlaq_f32(sum[p][c], x[p], codes);
    }
    rows += QUAD_ROWS, panel += QUAD_COLUMNS;
  } while (--quads > 0);
  unrolled<HEIGHT / 2 * VECTORS>(DFQ_EACH(i) {
    const int p = i / VECTORS, t = i % VECTORS;
    float* const to = totals + 2 * p * ROW_VALUES + t * LANES;
    const Floats factor = floats_at(scale + t * LANES);
    put(to, plus(floats_at(to), product(low_halves(sum[p][2 * t], sum[p][2 * t + 1]), factor)));
    put(to + ROW_VALUES,
        plus(floats_at(to + ROW_VALUES), product(high_halves(sum[p][2 * t], sum[p][2 * t + 1]), factor)));
  });
}

void multiply_narrow(const GemmCall& call, int64_t tile, int64_t last, int64_t begin, int64_t end, void* work) {
  const Tile16Weight& w = *call.weight;
  alignas(64) uint16_t panel[FLOAT_DEPTH * ROW_VALUES];
  alignas(64) float scale[ROW_VALUES];
  float* memory = static_cast<float*>(work);
  for (; tile < last; ++tile) {
    std::memset(memory, 0, size_t(end - begin) * BLOCK_VALUES * 4);
    for (int64_t at = 0, group = 0; at < w.blocks; at += FLOAT_DEPTH / TILE16_DEPTH) {
      const int64_t stop = minimum(w.blocks, at + FLOAT_DEPTH / TILE16_DEPTH);
      for (int64_t first = at; first < stop;) {  // stretches of one group
        if (first == end_of(w, group)) ++group;
        const int64_t count = minimum(stop, end_of(w, group)) - first;
        unpack_narrow(w, tile, group, first, count, panel);
        for (int t = 0; t < VECTORS; ++t) {
          put(scale + t * LANES, widen(w.scale + group * w.n16 + tile * TILE16_ROWS + t * LANES));
        }
        for (int64_t block = begin; block < end; ++block) {
          const uint16_t* rows = narrow_rows(call, block, at, stop) + (first - at) * 2 * QUAD_ROWS;
          narrow_block(rows, panel, 2 * count, scale, memory + (block - begin) * BLOCK_VALUES);
        }
        first += count;
      }
    }
    for (int64_t block = begin; block < end; ++block) {
      finish(call, block, tile * TILE16_ROWS, VECTORS, memory + (block - begin) * BLOCK_VALUES);
    }
  }
}

int64_t value_bytes(const Tile16Weight& w, int type) {
  return type == DFQ_BFLOAT16 ? narrow_bytes(w) : float_bytes(w, type);
}

void pack_values(const GemmCall& call, int64_t begin, int64_t end) {
  if (call.type == DFQ_BFLOAT16) pack_narrow(call, begin, end);
  else pack_float(call, begin, end);
}

void multiply_values(const GemmCall& call, int64_t first, int64_t last, int64_t begin, int64_t end, void* work) {
  if (call.type == DFQ_BFLOAT16) multiply_narrow(call, first, last, begin, end, work);
  else multiply_float(call, first, last, begin, end, work);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
