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

int dfq_dense(const dfq_dense_args* args) {
  const bool codes = args->kind == DFQ_CODES8;
  const int64_t group = args->group > 0 && args->group < args->k ? args->group : args->k;
  if (!valid_type(args->dtype) || (!codes && (args->kind != args->dtype || args->dtype == DFQ_FLOAT16)) ||
      (codes && (!args->scale || args->group < 0 || (group < args->k && group % 16))) || args->m < 1 || args->n < 1 ||
      args->k < 1)
    return DFQ_BAD_ARGUMENT;
  return returning_status([&] {
    const DenseKernels& use = kernels().dense;
    auto* const narrow = !codes ? use.dense_bf16 : group == args->k ? use.codes_bf16 : nullptr;
    const bool bf16 = args->dtype == DFQ_BFLOAT16 && narrow;
    const int64_t stride = ceil_div(args->k, 32) * 32, size = bf16 ? 2 : 4, groups = ceil_div(args->k, group);
    const int64_t bytes = codes ? 1 : args->kind == DFQ_FLOAT32 ? 4 : 2;
    char* const rows = static_cast<char*>(scratch(SCRATCH_CALLER, args->m * stride * size));
    std::memset(rows, 0, size_t(args->m * stride * size));
    for (int64_t i = 0; i < args->m; ++i) {
      char* const to = rows + i * stride * size;
      if (bf16) std::memcpy(to, static_cast<const char*>(args->x) + i * args->k * 2, size_t(args->k) * 2);
      else use.load(args->x, int(args->dtype), i * args->k, args->k, reinterpret_cast<float*>(to));
    }
    parallel_rows(ceil_div(args->n, DENSE_ROWS), DENSE_ROWS * args->k, args->threads, [&](int64_t begin, int64_t end) {
      float sums[DECODE_ROWS * DENSE_ROWS];
      for (int64_t from = begin * DENSE_ROWS; from < std::min(args->n, end * DENSE_ROWS); from += DENSE_ROWS) {
        const int64_t count = std::min(DENSE_ROWS, args->n - from);
        const DenseWeight w = {static_cast<const char*>(args->weight) + from * args->k * bytes,
                               codes ? args->scale + from * groups : nullptr, int(args->kind), args->k, group};
        for (int64_t i = 0; i < args->m; i += DECODE_ROWS) {
          const int64_t block = std::min(DECODE_ROWS, args->m - i);
          const char* const at = rows + i * stride * size;
          if (bf16) narrow(reinterpret_cast<const uint16_t*>(at), block, stride, w, 0, count, sums, DENSE_ROWS);
          else use.dense(reinterpret_cast<const float*>(at), block, stride, w, 0, count, sums, DENSE_ROWS);
          for (int64_t row = 0; row < block; ++row) {
            use.store(sums + row * DENSE_ROWS, count, int(args->dtype), args->out, (i + row) * args->n + from);
          }
        }
      }
    });
  });
}
