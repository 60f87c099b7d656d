// Sums of bytes and the outputs of a block, on instruction sets without masks.
#pragma once
#include <cstdint>

#include "common/convert.h"
#include "common/integers.h"
#include "common/isa.h"
#include "gemm/gemm_kernels.h"
#include "gemm/vectors.h"

namespace dfq::DFQ_ISA {
namespace {

int32_t sum_bytes(const int8_t* q, int64_t count) {
  int32_t sum = 0;
  for (int64_t j = 0; j < count; ++j) sum += q[j];
  return sum;
}

// Writes y = totals * x_scale + bias of `width` vectors of one block; x_scale null: 1.
void finish(const GemmCall& call, int64_t block, int64_t column, int width, const float* totals) {
  const Tile16Out& out = call.out;
  const int64_t n = call.weight->n, row = block * HEIGHT, rows = minimum(HEIGHT, call.m - row);
  const int64_t count = minimum(width * LANES, n - column);
  float y[VECTORS * LANES];
  for (int64_t r = 0; r < rows; ++r, totals += VECTORS * LANES) {
    const float scale = call.x_scale ? call.x_scale[row + r] : 1.0f;
    for (int64_t i = 0; i < VECTORS * LANES; ++i) y[i] = totals[i] * scale;
    if (out.bias) {
      for (int64_t i = 0; i < count; ++i) y[i] += out.bias[column + i];
    }
    store_floats(y, count, out.type, out.y, (row + r) * n + column);
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
