// The tile16 family on 64-bit ARM, with the byte and bfloat16 products of Armv8.6.
#include <arm_neon.h>

#include <cstring>

#include "dfq_kernels.h"
#include "tile16/tile16_kernels.h"

namespace dfq {
namespace {

constexpr int64_t AHEAD = 1024;

#define DFQ_NEON
#include "common/convert.h"
#include "common/simd_neon.h"
#include "common/height.h"
#include "tile16/prepack.h"
#include "tile16/tile16_neon.h"
#include "tile16/decode_rows.h"

// Rows of bfloat16 stay what they are.
int64_t value_bytes(int64_t m, const TiledWeight& w, int type) {
  return type == DFQ_BFLOAT16 ? w.blocks * m * TILED_DEPTH * 2 : float_bytes(m, w, type);
}

void prepare_values(const FloatRows& x, const TiledWeight& w, void* rows, float* x_sums) {
  if (x.type != DFQ_BFLOAT16) return prepare_float(x, w, rows, x_sums);
  const int64_t width = w.blocks * TILED_DEPTH;
  for (int64_t r = 0; r < x.m; ++r) {
    uint16_t* const to = static_cast<uint16_t*>(rows) + r * width;
    std::memcpy(to, static_cast<const uint16_t*>(x.x) + r * w.k, size_t(w.k) * 2);
    std::memset(to + w.k, 0, size_t(width - w.k) * 2);
    sum_groups(to, w, x_sums + r * w.groups);
  }
}

void decode_any(const TiledCall& call, int type, int64_t begin, int64_t end) {
  if (type == DFQ_BFLOAT16) decode_values<uint16_t>(call, begin, end);
  else decode_float(call, type, begin, end);
}

}  // namespace

const TiledKernels i8mm_tiled = {
    pack_tiles, unpack_tiles,  sum_codes,       value_bytes,    prepare_values,
    decode_any, integer_bytes, prepare_integer, decode_integer,
};

}  // namespace dfq
