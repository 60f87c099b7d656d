// The elementwise work of a decoder block, per instruction set; decoder.cpp runs whole blocks with it. Values are read
// and written as `type` (DFQ_FLOAT32 ...), computed in float32 and rounded to `type` wherever the torch modules round.
//
#pragma once
#include <cstdint>

#include "common/isa.h"

namespace dfq {

struct BlockKernels {
  // y = weight * round(x / rms(x)), weight [count] as float32
  void (*rmsnorm)(const void* x, int type, int64_t count, const float* weight, float eps, void* y);
  // x[from + i] += y[from + i]
  void (*add)(void* x, const void* y, int type, int64_t from, int64_t count);
  // `heads` heads of `dim` values from element `at` on are rotated by the angles with cos and sin [dim] (RoPE)
  void (*rope)(void* x, int type, int64_t at, int64_t heads, int64_t dim, const float* cos, const float* sin);
  // values x[from + i] as float32
  void (*to_float32)(const void* x, int type, int64_t from, int64_t count, float* out);
  // out[from + i] = silu(gate[from + i]) * up[from + i]
  void (*silu_mul)(const void* gate, const void* up, int type, int64_t from, int64_t count, void* out);
};

}  // namespace dfq

namespace dfq::DFQ_ISA {

extern const BlockKernels block_table;

}  // namespace dfq::DFQ_ISA
