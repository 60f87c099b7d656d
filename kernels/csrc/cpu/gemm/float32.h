// Floating products: a piece of the weight, FLOAT_DEPTH columns of k, becomes float32 once and stays in L1 while all
// rows pass.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/convert.h"
#include "common/integers.h"
#include "common/isa.h"
#include "gemm/epilogue.h"
#include "gemm/float_block.h"
#include "gemm/gemm_kernels.h"
#include "gemm/integer.h"
#include "gemm/integer_rows.h"
#include "gemm/vectors.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int64_t FLOAT_DEPTH = 256;

int64_t float_bytes(const Tile16Weight& w, int) { return HEIGHT * w.blocks * TILE16_DEPTH * 4; }

// Row block of a piece of k-blocks at .. stop - 1: [piece][block][k][row].
float* float_rows(const GemmCall& call, int64_t block, int64_t at, int64_t stop) {
  return reinterpret_cast<float*>(call.rows) + (at * call.blocks + block * (stop - at)) * TILE16_DEPTH * HEIGHT;
}

void pack_float(const GemmCall& call, int64_t begin, int64_t end) {
  const Tile16Weight& w = *call.weight;
  const int64_t piece = FLOAT_DEPTH / TILE16_DEPTH;
  float values[FLOAT_DEPTH];
  for (int64_t block = begin; block < end; ++block) {
    for (int64_t at = 0; at < w.blocks; at += piece) {
      const int64_t stop = minimum(w.blocks, at + piece), first = at * TILE16_DEPTH, depth = (stop - at) * TILE16_DEPTH;
      float* to = float_rows(call, block, at, stop);
      for (int64_t r = 0; r < HEIGHT; ++r) {
        const int64_t row = block * HEIGHT + r;
        std::memset(values, 0, sizeof values);
        if (row < call.m) load_floats(call.x, call.type, row * w.k + first, minimum(depth, w.k - first), values);
        for (int64_t j = 0; j < depth; ++j) to[j * HEIGHT + r] = values[j];
      }
    }
  }
}

// k-blocks first .. first + count - 1 of one group -> scale * (code - zero) as [k][ROW_VALUES]
void unpack_tile(const Tile16Weight& w, int64_t tile, int64_t group, int64_t first, int64_t count, float* to) {
  for (int64_t t = 0; t < VECTORS; ++t) {
    const int64_t column = tile * TILE16_ROWS + t * LANES;
    const Ints zero = zeros_of(w, group, column);
    const Floats scale = widen(w.scale + group * w.n16 + column);
    const uint8_t* from = w.tiles + (tile * w.blocks + first) * TILE16_BYTES + t * 4 * LANES;
    for (int64_t j = 0; j < count; ++j) {
      Ints v = ints_at(from + j * TILE16_BYTES);
      for (int c = 0; c < 8; ++c, v = without_nibble(v)) {
        const int64_t k = 8 * j + c / 2 + c % 2 * 4;  // nibbles lie in the order k0 k4 k1 k5 k2 k6 k3 k7
        const Ints code = minus(low_nibble(v), zero);
        put(to + k * ROW_VALUES + t * LANES, product(to_floats(code), scale));
      }
    }
  }
}

void multiply_float(const GemmCall& call, int64_t tile, int64_t last, int64_t begin, int64_t end, void* work) {
  const Tile16Weight& w = *call.weight;
  alignas(64) float panel[FLOAT_DEPTH * ROW_VALUES];
  float* memory = static_cast<float*>(work);
  for (; tile < last; ++tile) {
    std::memset(memory, 0, size_t(end - begin) * BLOCK_VALUES * 4);
    for (int64_t at = 0, group = 0; at < w.blocks; at += FLOAT_DEPTH / TILE16_DEPTH) {
      const int64_t stop = minimum(w.blocks, at + FLOAT_DEPTH / TILE16_DEPTH);
      for (int64_t first = at; first < stop;) {
        if (first == end_of(w, group)) ++group;
        const int64_t count = minimum(stop, end_of(w, group)) - first;
        unpack_tile(w, tile, group, first, count, panel + (first - at) * TILE16_DEPTH * ROW_VALUES);
        first += count;
      }
      for (int64_t block = begin; block < end; ++block) {
        float* totals = memory + (block - begin) * BLOCK_VALUES;
        float_block(float_rows(call, block, at, stop), panel, (stop - at) * TILE16_DEPTH, totals);
        if (stop == w.blocks) finish(call, block, tile * TILE16_ROWS, VECTORS, totals);
      }
    }
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
