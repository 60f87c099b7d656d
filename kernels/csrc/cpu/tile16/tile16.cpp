// The tile16 family behind the C interface: prepacking, and products by decode (few rows) or gemm (many).
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>

#include "common/kernels.h"
#include "common/limits.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "dfq_abi.h"

namespace dfq {
namespace {

constexpr int64_t FEW_BYTES = 1 << 16;    // weights that one thread has read before another is awake
constexpr int64_t CHUNK_TILES = 16;       // four streams of four tiles
constexpr int64_t LARGE_PAGE = 1 << 21;   // bytes, on x86 and on ARM with pages of 4 KB

bool tile16_weight(const uint8_t* tiles, const uint16_t* scale, const uint8_t* zero, const int32_t* sums, int64_t n,
                  int64_t k, int64_t group, Tile16Weight& weight) {
  if (n < 0 || k < 0 || k > MAX_K || group < 0) return false;
  const int64_t width = group > 0 && group < k ? group : std::max<int64_t>(k, 1);
  const int64_t groups = k > 0 ? ceil_div(k, width) : 1;
  if (groups > 1 && width % TILE16_DEPTH) return false;
  weight = {tiles, scale, zero, sums, n, k, ceil_div(n, TILE16_ROWS) * TILE16_ROWS, ceil_div(k, TILE16_DEPTH),
            width, groups};
  return true;
}

// Large pages, where the system has them to give, for what every token reads from end to end: with pages of 4 KB,
// looking up their addresses takes 4 to 8 % of a product (measured, in a virtual machine). Only advice, and before
// anything is written there; it changes no page that the memory shares with something else.
void advise_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), at = uintptr_t(memory);
  const uintptr_t begin = (at + page - 1) / page * page, end = (at + uintptr_t(bytes)) / page * page;
  if (begin < end && bytes >= LARGE_PAGE) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Runs function(begin, end) over the tiles of a weight.
template <typename Function>
void parallel_tiles(const Tile16Weight& weight, int64_t threads, Function function) {
  const int64_t tiles = weight.n16 / TILE16_ROWS;
  if (tiles * weight.blocks * TILE16_BYTES < FEW_BYTES) threads = 1;
  int64_t step = CHUNK_TILES;
  while (step > 4 && tiles < 4 * threads * step) step /= 2;
  parallel_chunks(ceil_div(tiles, step), threads,
                  [&](int64_t i) { function(i * step, std::min(tiles, (i + 1) * step)); });
}

}  // namespace
}  // namespace dfq

using namespace dfq;

int dfq_prepack(const dfq_prepack_args* args) {
  Tile16Weight weight;
  if (!tile16_weight(args->tiles, nullptr, nullptr, args->sums, args->n, args->k, args->group, weight))
    return DFQ_BAD_ARGUMENT;
  const Tile16Kernels& run = kernels().tile16;
  advise_large_pages(args->tiles, weight.n16 * weight.blocks * TILE16_DEPTH / 2);
  return returning_status([&] {
    parallel_tiles(weight, args->threads, [&](int64_t begin, int64_t end) {
      run.pack(args->packed, args->n, args->k, args->tiles, begin, end);
      if (args->sums) run.sum_codes(weight, args->sums, begin, end);
    });
  });
}

int dfq_unprepack(const dfq_unprepack_args* args) {
  Tile16Weight weight;
  if (!tile16_weight(args->tiles, nullptr, nullptr, nullptr, args->n, args->k, 0, weight)) return DFQ_BAD_ARGUMENT;
  const Tile16Kernels& run = kernels().tile16;
  return returning_status([&] {
    parallel_tiles(weight, args->threads, [&](int64_t begin, int64_t end) {
      run.unpack(args->tiles, args->n, args->k, args->packed, begin, end);
    });
  });
}

int dfq_tiled_w4a16(const dfq_tiled_w4a16_args* args) {
  Tile16Weight weight;
  if (!valid_type(args->dtype) ||
      !tile16_weight(args->tiles, args->scale, args->zero, nullptr, args->n, args->k, args->group, weight))
    return DFQ_BAD_ARGUMENT;
  const Tile16Kernels& run = kernels().tile16;
  const GemmKernels* gemm = kernels().gemm;
  return returning_status([&] {
    if (args->m > DECODE_ROWS && args->k > 0 && gemm) {
      return gemm_float(*gemm, weight, {args->x, int(args->dtype), args->m}, {args->out, int(args->dtype), args->bias},
                        args->threads);
    }
    const int64_t size = args->dtype == DFQ_FLOAT32 ? 4 : 2;
    for (int64_t row = 0; row < args->m; row += DECODE_ROWS) {
      const int64_t rows = std::min(DECODE_ROWS, args->m - row);
      const FloatRows some = {static_cast<const char*>(args->x) + row * args->k * size, int(args->dtype), rows};
      void* prepared = scratch(SCRATCH_CALLER, run.float_bytes(rows, weight, int(args->dtype)));
      float* sums = static_cast<float*>(scratch(SCRATCH_CALLER_SUMS, rows * weight.groups * 4));
      run.prepare_float(some, weight, prepared, sums);
      const Tile16Out to = {static_cast<char*>(args->out) + row * args->n * size, int(args->dtype), args->bias};
      const Tile16Call call = {&weight, prepared, sums, nullptr, nullptr, nullptr, rows, to};
      parallel_tiles(weight, args->threads,
                  [&](int64_t begin, int64_t end) { run.decode_float(call, int(args->dtype), begin, end); });
    }
  });
}

int dfq_tiled_w4a8(const dfq_tiled_w4a8_args* args) {
  Tile16Weight weight;
  if (!valid_type(args->dtype) ||
      !tile16_weight(args->tiles, args->scale, args->zero, args->sums, args->n, args->k, args->group, weight) ||
      (args->x_zero && !args->sums)) {
    return DFQ_BAD_ARGUMENT;
  }
  const Tile16Kernels& run = kernels().tile16;
  const GemmKernels* gemm = kernels().gemm;
  return returning_status([&] {
    if (args->m > DECODE_ROWS && args->k > 0 && gemm) {
      return gemm_integer(*gemm, weight, {args->q, args->x_scale, args->x_zero, args->m},
                          {args->out, int(args->dtype), args->bias}, args->threads);
    }
    const int64_t size = args->dtype == DFQ_FLOAT32 ? 4 : 2;
    for (int64_t row = 0; row < args->m; row += DECODE_ROWS) {
      const int64_t rows = std::min(DECODE_ROWS, args->m - row);
      const IntegerRows some = {args->q + row * args->k, args->x_scale + row,
                                args->x_zero ? args->x_zero + row : nullptr, rows};
      void* prepared = scratch(SCRATCH_CALLER, run.integer_bytes(rows, weight));
      int32_t* q_sums = static_cast<int32_t*>(scratch(SCRATCH_CALLER_SUMS, rows * weight.groups * 4));
      run.prepare_integer(some, weight, prepared, q_sums);
      const Tile16Out to = {static_cast<char*>(args->out) + row * args->n * size, int(args->dtype), args->bias};
      const Tile16Call call = {&weight, prepared, nullptr, q_sums, some.scale, some.zero, rows, to};
      parallel_tiles(weight, args->threads, [&](int64_t begin, int64_t end) { run.decode_integer(call, begin, end); });
    }
  });
}
