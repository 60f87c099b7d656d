// The tile16 family behind the C interface: prepacking, and products by decode (few rows) or gemm (many).
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>

#include "common/kernels.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "dfq_abi.h"

namespace dfq {
namespace {

constexpr int64_t MOST_K = 1 << 19;       // 2^19 products of at most 15 * 255 fit into 31 bits
constexpr int64_t FEW_BYTES = 1 << 16;    // weights that one thread has read before another is awake
constexpr int64_t CHUNK_TILES = 16;       // four streams of four tiles
constexpr int64_t LARGE_PAGE = 1 << 21;   // bytes, on x86 and on ARM with pages of 4 KB

bool tiled_weight(const uint8_t* tiles, const uint16_t* scale, const uint8_t* zero, const int32_t* sums, int64_t n,
                  int64_t k, int64_t group, TiledWeight& weight) {
  if (n < 0 || k < 0 || k > MOST_K || group < 0) return false;
  const int64_t width = group > 0 && group < k ? group : std::max<int64_t>(k, 1);
  const int64_t groups = k > 0 ? divided(k, width) : 1;
  if (groups > 1 && width % TILED_DEPTH) return false;
  weight = {tiles, scale, zero, sums, n, k, divided(n, TILED_ROWS) * TILED_ROWS, divided(k, TILED_DEPTH), width, groups};
  return true;
}

// Large pages, where the system has them to give, for what every token reads from end to end: with pages of 4 KB, looking
// up their addresses takes 4 to 8 % of a product (measured, in a virtual machine). Only advice, and before anything is
// written there; it changes no page that the memory shares with something else.
void advise_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), at = uintptr_t(memory);
  const uintptr_t begin = (at + page - 1) / page * page, end = (at + uintptr_t(bytes)) / page * page;
  if (begin < end && bytes >= LARGE_PAGE) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Runs function(begin, end) over the tiles of a weight.
template <typename Function>
void over_weight(const TiledWeight& weight, int64_t threads, Function function) {
  const int64_t tiles = weight.n16 / TILED_ROWS;
  if (tiles * weight.blocks * TILED_BYTES < FEW_BYTES) threads = 1;
  int64_t step = CHUNK_TILES;
  while (step > 4 && tiles < 4 * threads * step) step /= 2;
  each(divided(tiles, step), threads, [&](int64_t i) { function(i * step, std::min(tiles, (i + 1) * step)); });
}

}  // namespace
}  // namespace dfq

using namespace dfq;

int dfq_prepack(const uint8_t* packed, int64_t n, int64_t k, int64_t group, uint8_t* tiles, int32_t* sums,
                int64_t threads) {
  TiledWeight weight;
  if (!tiled_weight(tiles, nullptr, nullptr, sums, n, k, group, weight)) return DFQ_BAD_ARGUMENT;
  const TiledKernels& run = kernels().tile16;
  advise_large_pages(tiles, weight.n16 * weight.blocks * TILED_DEPTH / 2);
  return guarded([&] {
    over_weight(weight, threads, [&](int64_t begin, int64_t end) {
      run.pack(packed, n, k, tiles, begin, end);
      if (sums) run.sum_codes(weight, sums, begin, end);
    });
  });
}

int dfq_unprepack(const uint8_t* tiles, int64_t n, int64_t k, uint8_t* packed, int64_t threads) {
  TiledWeight weight;
  if (!tiled_weight(tiles, nullptr, nullptr, nullptr, n, k, 0, weight)) return DFQ_BAD_ARGUMENT;
  const TiledKernels& run = kernels().tile16;
  return guarded([&] {
    over_weight(weight, threads, [&](int64_t begin, int64_t end) { run.unpack(tiles, n, k, packed, begin, end); });
  });
}

int dfq_tiled_w4a16(const void* x, int64_t type, int64_t m, int64_t n, int64_t k, const uint8_t* tiles,
                    const uint16_t* scale, const uint8_t* zero, int64_t group, const float* bias, void* out,
                    int64_t threads) {
  TiledWeight weight;
  if (!valid_type(type) || !tiled_weight(tiles, scale, zero, nullptr, n, k, group, weight)) return DFQ_BAD_ARGUMENT;
  const TiledKernels& run = kernels().tile16;
  const GemmKernels* gemm = kernels().gemm;
  return guarded([&] {
    if (m > DECODE_ROWS && k > 0 && gemm) {
      return gemm_float(*gemm, weight, {x, int(type), m}, {out, int(type), bias}, threads);
    }
    const int64_t size = type == DFQ_FLOAT32 ? 4 : 2;
    for (int64_t row = 0; row < m; row += DECODE_ROWS) {
      const int64_t rows = std::min(DECODE_ROWS, m - row);
      const FloatRows some = {static_cast<const char*>(x) + row * k * size, int(type), rows};
      void* prepared = scratch(SCRATCH_CALLER, run.float_bytes(rows, weight, int(type)));
      float* sums = static_cast<float*>(scratch(SCRATCH_CALLER_SUMS, rows * weight.groups * 4));
      run.prepare_float(some, weight, prepared, sums);
      const TiledOut to = {static_cast<char*>(out) + row * n * size, int(type), bias};
      const TiledCall call = {&weight, prepared, sums, nullptr, nullptr, nullptr, rows, to};
      over_weight(weight, threads, [&](int64_t begin, int64_t end) { run.decode_float(call, int(type), begin, end); });
    }
  });
}

int dfq_tiled_w4a8(const int8_t* q, const float* x_scale, const int32_t* x_zero, int64_t m, int64_t n, int64_t k,
                   const uint8_t* tiles, const uint16_t* scale, const uint8_t* zero, const int32_t* sums,
                   int64_t group, const float* bias, int64_t type, void* out, int64_t threads) {
  TiledWeight weight;
  if (!valid_type(type) || !tiled_weight(tiles, scale, zero, sums, n, k, group, weight) || (x_zero && !sums)) {
    return DFQ_BAD_ARGUMENT;
  }
  const TiledKernels& run = kernels().tile16;
  const GemmKernels* gemm = kernels().gemm;
  return guarded([&] {
    if (m > DECODE_ROWS && k > 0 && gemm) {
      return gemm_integer(*gemm, weight, {q, x_scale, x_zero, m}, {out, int(type), bias}, threads);
    }
    const int64_t size = type == DFQ_FLOAT32 ? 4 : 2;
    for (int64_t row = 0; row < m; row += DECODE_ROWS) {
      const int64_t rows = std::min(DECODE_ROWS, m - row);
      const IntegerRows some = {q + row * k, x_scale + row, x_zero ? x_zero + row : nullptr, rows};
      void* prepared = scratch(SCRATCH_CALLER, run.integer_bytes(rows, weight));
      int32_t* q_sums = static_cast<int32_t*>(scratch(SCRATCH_CALLER_SUMS, rows * weight.groups * 4));
      run.prepare_integer(some, weight, prepared, q_sums);
      const TiledOut to = {static_cast<char*>(out) + row * n * size, int(type), bias};
      const TiledCall call = {&weight, prepared, nullptr, q_sums, some.scale, some.zero, rows, to};
      over_weight(weight, threads, [&](int64_t begin, int64_t end) { run.decode_integer(call, begin, end); });
    }
  });
}
