// Products of the tile16 family with many rows: slabs of rows, packed once, times chunks of tiles.
#include "gemm/gemm_kernels.h"

#include <algorithm>

#include "common/parallel.h"
#include "common/scratch.h"
#include "dfq_abi.h"

namespace dfq {
namespace {

constexpr int64_t SLAB_ROWS = 768, SLAB_BYTES = 16 << 20;  // packed rows at a time: they live in L3
constexpr int64_t PART_BLOCKS = 8;  // fewest blocks of a chunk of work where rows are cut for the sake of threads

int64_t size_of_type(int type) { return type == DFQ_FLOAT32 ? 4 : 2; }

// Slabs of equal height, as few as fit.
int64_t slab_rows(int64_t m, int64_t height, int64_t block_bytes) {
  const int64_t most =
      std::max<int64_t>(1, std::min(SLAB_ROWS / height, SLAB_BYTES / std::max<int64_t>(block_bytes, 1)));
  const int64_t blocks = ceil_div(m, height);
  return ceil_div(blocks, ceil_div(blocks, most)) * height;
}

template <typename Pack, typename Multiply>
void multiply_slab(const GemmKernels& run, const GemmCall& call, int64_t threads, Pack pack, Multiply multiply) {
  const int64_t blocks = call.blocks, tiles = call.weight->n16 / TILE16_ROWS;
  parallel_rows(blocks, run.height * call.weight->k, threads,
                [&](int64_t begin, int64_t end) { pack(call, begin, end); });
  const int64_t columns = ceil_div(tiles, run.tiles);
  int64_t parts = 1;
  while (columns * parts < 4 * threads && blocks / (parts + 1) >= PART_BLOCKS) ++parts;
  const int64_t partition = ceil_div(blocks, parts);
  parallel_chunks(columns * parts, threads, [&](int64_t i) {
    const int64_t first = i % columns * run.tiles, begin = i / columns * partition,
                  end = std::min(blocks, begin + partition);
    if (begin >= end) return;
    void* work = scratch(SCRATCH_WORKER, run.work_bytes(end - begin));
    multiply(call, first, std::min(tiles, first + run.tiles), begin, end, work);
  });
}

// 16-bit pairs take the place of 32-bit corrections where everything fits.
bool narrow(const Tile16Weight& weight, const IntegerRows& x) {
  if (weight.group > NARROW_GROUP) return false;
  return !x.zero || std::all_of(x.zero, x.zero + x.m, [](int32_t z) { return z > -32768 && z < 32768; });
}

}  // namespace

void gemm_integer(const GemmKernels& run, const Tile16Weight& weight, const IntegerRows& x, const Tile16Out& out,
                  int64_t threads) {
  const int64_t bytes = run.integer_bytes(weight), step = slab_rows(x.m, run.height, bytes), blocks = step / run.height;
  GemmCall call = {&weight, 0, 0, nullptr, nullptr, narrow(weight, x), nullptr, 0, nullptr, nullptr, out};
  call.rows = static_cast<char*>(scratch(SCRATCH_CALLER, blocks * bytes));
  call.sums = static_cast<int32_t*>(scratch(SCRATCH_CALLER_SUMS, step * weight.groups * 4));
  for (int64_t row = 0; row < x.m; row += step) {
    call.m = std::min(step, x.m - row);
    call.blocks = ceil_div(call.m, run.height);
    call.x = x.q + row * weight.k;
    call.x_scale = x.scale + row;
    call.x_zero = x.zero ? x.zero + row : nullptr;
    call.out.y = static_cast<char*>(out.y) + row * weight.n * size_of_type(out.type);
    multiply_slab(run, call, threads, run.pack_integer, run.integer);
  }
}

void gemm_float(const GemmKernels& run, const Tile16Weight& weight, const FloatRows& x, const Tile16Out& out,
                int64_t threads) {
  const int64_t bytes = run.float_bytes(weight, x.type), step = slab_rows(x.m, run.height, bytes);
  const int64_t blocks = step / run.height;
  GemmCall call = {&weight, 0, 0, nullptr, nullptr, false, nullptr, x.type, nullptr, nullptr, out};
  call.rows = static_cast<char*>(scratch(SCRATCH_CALLER, blocks * bytes));
  call.sums = static_cast<int32_t*>(scratch(SCRATCH_CALLER_SUMS, blocks * 4));
  for (int64_t row = 0; row < x.m; row += step) {
    call.m = std::min(step, x.m - row);
    call.blocks = ceil_div(call.m, run.height);
    call.x = static_cast<const char*>(x.x) + row * weight.k * size_of_type(x.type);
    call.out.y = static_cast<char*>(out.y) + row * weight.n * size_of_type(out.type);
    multiply_slab(run, call, threads, run.pack_float, run.real);
  }
}

}  // namespace dfq
