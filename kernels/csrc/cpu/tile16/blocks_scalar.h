// Products of a tile and up to STEP rows in plain C++: integer_block and float_block. The rows come as decode_rows.h
// prepares them.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int64_t STEP = 4;  // rows that share the unpacked codes of a block

// `count` rows of `blocks` k-blocks, `width` apart; sums[row][output row] += products with u
void integer_block(const uint8_t* in, int64_t blocks, const int8_t* q, int64_t width, int64_t count,
                   int32_t (*sums)[TILE16_ROWS]) {
  for (int64_t j = 0; j < blocks; ++j, in += TILE16_BYTES, q += TILE16_DEPTH) {
    for (int64_t c = 0; c < 4; ++c) {
      int32_t low[TILE16_ROWS], high[TILE16_ROWS];
      for (int64_t r = 0; r < TILE16_ROWS; ++r) {
        low[r] = in[4 * r + c] & 15;
        high[r] = in[4 * r + c] >> 4;
      }
      for (int64_t row = 0; row < count; ++row) {
        const int32_t first = q[row * width + c], second = q[row * width + 4 + c];
        for (int64_t r = 0; r < TILE16_ROWS; ++r) sums[row][r] += low[r] * first + high[r] * second;
      }
    }
  }
}

// the same with u - 8 and float rows
void float_block(const uint8_t* in, int64_t blocks, const float* x, int64_t width, int64_t count,
                 float (*sums)[TILE16_ROWS]) {
  for (int64_t j = 0; j < blocks; ++j, in += TILE16_BYTES, x += TILE16_DEPTH) {
    for (int64_t c = 0; c < 4; ++c) {
      float low[TILE16_ROWS], high[TILE16_ROWS];
      for (int64_t r = 0; r < TILE16_ROWS; ++r) {
        low[r] = float(int32_t(in[4 * r + c] & 15) - 8);
        high[r] = float(int32_t(in[4 * r + c] >> 4) - 8);
      }
      for (int64_t row = 0; row < count; ++row) {
        const float first = x[row * width + c], second = x[row * width + 4 + c];
        for (int64_t r = 0; r < TILE16_ROWS; ++r) sums[row][r] += low[r] * first + high[r] * second;
      }
    }
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
