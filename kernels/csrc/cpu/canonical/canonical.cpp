// The C interface of products with weights in the canonical layout. Work is cut along rows and output columns only, so
// that no sum depends on the number of threads.
#include <algorithm>
#include <atomic>

#include "canonical/canonical_kernels.h"
#include "common/buffer.h"
#include "common/kernels.h"
#include "common/limits.h"
#include "common/parallel.h"
#include "dfq_abi.h"

namespace dfq {
namespace {

// Runs function(first row, last row, column) over the tiles of an [m, n] product of depth k.
template <typename Function>
void parallel_tiles(int64_t m, int64_t n, int64_t k, int64_t threads, Function function) {
  if (m == 0 || n == 0) return;
  const int64_t work = n * k + m * n * k / 64;  // unpacking a weight costs about as much as 64 multiply-adds
  const int64_t columns = ceil_div(n, TILE_N), rows = ceil_div(m, TILE_M);
  parallel_chunks(columns * rows, work < SMALL ? 1 : threads, [&](int64_t i) {
    const int64_t begin = i / columns * TILE_M;
    function(begin, std::min(m, begin + TILE_M), i % columns * TILE_N);
  });
}

Weight weight_of(const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t n, int64_t k,
                 int64_t group) {
  const int64_t width = group > 0 && group < k ? group : std::max<int64_t>(k, 1);
  return {packed, scale, zero, n, k, width, k > 0 ? ceil_div(k, width) : 1};
}

}  // namespace
}  // namespace dfq

using namespace dfq;

int dfq_dequantize(const dfq_dequantize_args* args) {
  if (!valid_bits(args->bits) || args->group < 0) return DFQ_BAD_ARGUMENT;
  const CanonicalKernels& run = kernels().canonical;
  const Weight weight = weight_of(args->packed, args->scale, args->zero, args->n, args->k, args->group);
  return returning_status([&] {
    parallel_rows(args->n, args->k, args->threads,
              [&](int64_t a, int64_t b) { run.dequantize_rows(weight, int(args->bits), args->w, a, b); });
  });
}

int dfq_w4a16_mm(const dfq_w4a16_mm_args* args) {
  if (!valid_type(args->dtype) || args->group < 0) return DFQ_BAD_ARGUMENT;
  const CanonicalKernels& run = kernels().canonical;
  const Weight weight = weight_of(args->packed, args->scale, args->zero, args->n, args->k, args->group);
  return returning_status([&] {
    auto rows = buffer<float>(args->m * args->k);
    parallel_rows(ceil_div(args->m, BLOCK_M), BLOCK_M * args->k, args->threads, [&](int64_t begin, int64_t end) {
      run.pack_floats(args->x, int(args->dtype), args->m, args->k, rows.get(), begin, end);
    });
    parallel_tiles(args->m, args->n, args->k, args->threads, [&](int64_t begin, int64_t end, int64_t column) {
      run.float_tile(rows.get(), args->m, weight, begin, end, column, int(args->dtype), args->out);
    });
  });
}

int dfq_w4a8_mm(const dfq_w4a8_mm_args* args) {
  if (args->group < 0 || args->k > MAX_K) return DFQ_BAD_ARGUMENT;
  const CanonicalKernels& run = kernels().canonical;
  const Weight weight = weight_of(args->packed, args->scale, args->zero, args->n, args->k, args->group);
  return returning_status([&] {
    const int64_t group_stride = ceil_div(weight.group, 4) * 4;
    const int64_t last = args->k - (weight.groups - 1) * weight.group;
    const int64_t stride = (weight.groups - 1) * group_stride + ceil_div(last, 4) * 4;
    auto codes = buffer<int8_t>(args->m * stride);
    auto sums = buffer<int32_t>(args->m * weight.groups);
    Tokens tokens = {codes.get(), sums.get(), args->x_scale, args->x_zero, args->m, stride, group_stride, 1};
    std::atomic<int> peak{1};
    parallel_rows(ceil_div(args->m, BLOCK_M), BLOCK_M * args->k, args->threads, [&](int64_t begin, int64_t end) {
      const int largest = run.pack_tokens(args->q, weight, tokens, codes.get(), sums.get(), begin, end);
      for (int before = peak; largest > before && !peak.compare_exchange_weak(before, largest);) {
      }
    });
    tokens.burst = 32767 / (2 * 15 * peak);  // 8 for codes of eight bits, 136 for four
    parallel_tiles(args->m, args->n, args->k, args->threads, [&](int64_t begin, int64_t end, int64_t column) {
      run.integer_tile(tokens, weight, begin, end, column, args->out);
    });
  });
}
