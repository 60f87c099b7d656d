// The C interface of products with weights in the canonical layout. Work is cut along rows and output columns only, so that no
// sum depends on the number of threads.
#include <algorithm>
#include <atomic>

#include "canonical/canonical_kernels.h"
#include "common/buffer.h"
#include "common/kernels.h"
#include "common/parallel.h"
#include "dfq_abi.h"

namespace dfq {
namespace {

constexpr int64_t MOST_K = 1 << 19;  // 2^19 products of at most 15 * 255 fit into 31 bits

// Runs function(first row, last row, column) over the tiles of an [m, n] product of depth k.
template <typename Function>
void over_tiles(int64_t m, int64_t n, int64_t k, int64_t threads, Function function) {
  if (m == 0 || n == 0) return;
  const int64_t work = n * k + m * n * k / 64;  // unpacking a weight costs about as much as 64 multiply-adds
  const int64_t columns = divided(n, TILE_N), rows = divided(m, TILE_M);
  each(columns * rows, work < SMALL ? 1 : threads, [&](int64_t i) {
    const int64_t begin = i / columns * TILE_M;
    function(begin, std::min(m, begin + TILE_M), i % columns * TILE_N);
  });
}

Weight weight_of(const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t n, int64_t k, int64_t group) {
  const int64_t width = group > 0 && group < k ? group : std::max<int64_t>(k, 1);
  return {packed, scale, zero, n, k, width, k > 0 ? divided(k, width) : 1};
}

}  // namespace
}  // namespace dfq

using namespace dfq;

int dfq_dequantize(const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t n, int64_t k,
                   int64_t bits, int64_t group, float* w, int64_t threads) {
  if (!valid_bits(bits) || group < 0) return DFQ_BAD_ARGUMENT;
  const CanonicalKernels& run = kernels().canonical;
  const Weight weight = weight_of(packed, scale, zero, n, k, group);
  return guarded([&] {
    over_rows(n, k, threads, [&](int64_t a, int64_t b) { run.dequantize_rows(weight, int(bits), w, a, b); });
  });
}

int dfq_w4a16_mm(const void* x, int64_t type, int64_t m, int64_t n, int64_t k, const uint8_t* packed,
                 const uint16_t* scale, const uint8_t* zero, int64_t group, void* out, int64_t threads) {
  if (!valid_type(type) || group < 0) return DFQ_BAD_ARGUMENT;
  const CanonicalKernels& run = kernels().canonical;
  const Weight weight = weight_of(packed, scale, zero, n, k, group);
  return guarded([&] {
    auto rows = buffer<float>(m * k);
    over_rows(divided(m, BLOCK_M), BLOCK_M * k, threads, [&](int64_t begin, int64_t end) {
      run.pack_floats(x, int(type), m, k, rows.get(), begin, end);
    });
    over_tiles(m, n, k, threads, [&](int64_t begin, int64_t end, int64_t column) {
      run.float_tile(rows.get(), m, weight, begin, end, column, int(type), out);
    });
  });
}

int dfq_w4a8_mm(const int8_t* q, const float* x_scale, const int32_t* x_zero, int64_t m, int64_t n, int64_t k,
                const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t group, float* out,
                int64_t threads) {
  if (group < 0 || k > MOST_K) return DFQ_BAD_ARGUMENT;
  const CanonicalKernels& run = kernels().canonical;
  const Weight weight = weight_of(packed, scale, zero, n, k, group);
  return guarded([&] {
    const int64_t group_stride = divided(weight.group, 4) * 4;
    const int64_t last = k - (weight.groups - 1) * weight.group;
    const int64_t stride = (weight.groups - 1) * group_stride + divided(last, 4) * 4;
    auto codes = buffer<int8_t>(m * stride);
    auto sums = buffer<int32_t>(m * weight.groups);
    Tokens tokens = {codes.get(), sums.get(), x_scale, x_zero, m, stride, group_stride, 1};
    std::atomic<int> peak{1};
    over_rows(divided(m, BLOCK_M), BLOCK_M * k, threads, [&](int64_t begin, int64_t end) {
      const int found = run.pack_tokens(q, weight, tokens, codes.get(), sums.get(), begin, end);
      for (int seen = peak; found > seen && !peak.compare_exchange_weak(seen, found);) {
      }
    });
    tokens.burst = 32767 / (2 * 15 * peak);  // 8 for codes of eight bits, 136 for four
    over_tiles(m, n, k, threads, [&](int64_t begin, int64_t end, int64_t column) {
      run.integer_tile(tokens, weight, begin, end, column, out);
    });
  });
}
