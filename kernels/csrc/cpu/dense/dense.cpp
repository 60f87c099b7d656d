// dfq_dense: products with a dense weight, which is read once for every 16 rows.
#include <algorithm>
#include <cstring>

#include "common/kernels.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "dense/dense_kernels.h"
#include "dfq_abi.h"
#include "tile16/tile16_kernels.h"

using namespace dfq;

int dfq_dense(const void* x, int64_t dtype, int64_t m, int64_t n, int64_t k, const void* weight, void* out,
              int64_t threads) {
  if ((dtype != DFQ_FLOAT32 && dtype != DFQ_BFLOAT16) || m < 1 || n < 1 || k < 1) return DFQ_BAD_ARGUMENT;
  return guarded([&] {
    const DenseKernels& use = kernels().dense;
    const bool narrow = dtype == DFQ_BFLOAT16 && use.dense_narrow;
    const int64_t stride = divided(k, 32) * 32, size = narrow ? 2 : 4, bytes = dtype == DFQ_FLOAT32 ? 4 : 2;
    char* const rows = static_cast<char*>(scratch(SCRATCH_CALLER, m * stride * size));
    std::memset(rows, 0, size_t(m * stride * size));
    for (int64_t i = 0; i < m; ++i) {
      char* const to = rows + i * stride * size;
      if (narrow) std::memcpy(to, static_cast<const char*>(x) + i * k * 2, size_t(k) * 2);
      else use.load(x, int(dtype), i * k, k, reinterpret_cast<float*>(to));
    }
    over_rows(divided(n, DENSE_ROWS), DENSE_ROWS * k, threads, [&](int64_t begin, int64_t end) {
      float sums[DECODE_ROWS * DENSE_ROWS];
      for (int64_t from = begin * DENSE_ROWS; from < std::min(n, end * DENSE_ROWS); from += DENSE_ROWS) {
        const int64_t count = std::min(DENSE_ROWS, n - from);
        const DenseWeight w = {static_cast<const char*>(weight) + from * k * bytes, nullptr, int(dtype), k};
        for (int64_t i = 0; i < m; i += DECODE_ROWS) {
          const int64_t block = std::min(DECODE_ROWS, m - i);
          const char* const at = rows + i * stride * size;
          if (narrow) use.dense_narrow(reinterpret_cast<const uint16_t*>(at), block, stride, w, 0, count, sums, DENSE_ROWS);
          else use.dense(reinterpret_cast<const float*>(at), block, stride, w, 0, count, sums, DENSE_ROWS);
          for (int64_t row = 0; row < block; ++row) {
            use.store(sums + row * DENSE_ROWS, count, int(dtype), out, (i + row) * n + from);
          }
        }
      }
    });
  });
}
