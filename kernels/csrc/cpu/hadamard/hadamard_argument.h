// A Hadamard transform as it comes through the C interface. For units that are compiled for the plain processor.
#pragma once
#include <cstdint>

#include "common/kernels.h"
#include "dfq_abi.h"

namespace dfq {
namespace {

struct HadamardArgument {  // a block-diagonal Hadamard transform as it comes through the C interface; base null: none
  const float* base;
  int64_t order, block;

  bool valid(int64_t dim) const {
    if (!base) return true;
    const int64_t size = order > 0 ? block / order : 0;
    return block > 0 && dim % block == 0 && size * order == block && (size & (size - 1)) == 0;
  }
  int64_t floats() const { return base ? order * order + 2 * block : 0; }
  // base [order][order], transposed, as the kernels want it
  void transpose(float* to) const {
    for (int64_t i = 0; base && i < order; ++i) {
      for (int64_t j = 0; j < order; ++j) to[j * order + i] = base[i * order + j];
    }
  }
  // in place; buffer: 2 * block floats
  void apply(float* x, int64_t count, const float* base_t, float* buffer) const {
    if (base) kernels().rows.hadamard_rows(x, DFQ_FLOAT32, block, base_t, order, x, buffer, 0, count / block);
  }
};

}  // namespace
}  // namespace dfq
