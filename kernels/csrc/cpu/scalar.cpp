// The instruction set every machine has.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../dfq_kernels.h"
#include "kernels.h"

namespace dfq {
namespace {
#include "portable.inc"

void transform(float* x, int64_t size) { butterflies(x, size, 1); }

void hadamard_rows(const void* x, int type, int64_t block, const float* base, int64_t order, void* out, float* scratch,
                   int64_t begin, int64_t end) {
  hadamard_with(transform, x, type, block, base, order, out, scratch, begin, end);
}

void float_mm(const float* x, int64_t m, const Weight& weight, float* scratch, float* out, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    dequantize_row(weight, n, scratch);
    for (int64_t row = 0; row < m; ++row) {
      const float* in = x + row * weight.k;
      float lanes[8] = {0};
      int64_t j = 0;
      for (; j + 8 <= weight.k; j += 8)
        for (int lane = 0; lane < 8; ++lane) lanes[lane] += in[j + lane] * scratch[j + lane];
      for (; j < weight.k; ++j) lanes[0] += in[j] * scratch[j];
      float sum = 0.0f;
      for (float lane : lanes) sum += lane;
      out[row * weight.n + n] = sum;
    }
  }
}

void integer_mm(const Tokens& tokens, const Weight& weight, int, uint8_t* scratch, float* out, int64_t begin,
                int64_t end) {
  integer_mm_portable(tokens, weight, scratch, out, begin, end);
}

}  // namespace

const Kernels scalar_kernels = {quantize_rows, hadamard_rows, to_float,         from_float,
                                float_mm,      integer_mm,    kv_quantize_rows, kv_dequantize_rows};

}  // namespace dfq
