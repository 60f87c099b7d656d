// The instruction set every machine has.
#include <cmath>
#include <cstring>

#include "dfq_kernels.h"
#include "rows/row_kernels.h"

namespace dfq {
namespace {

constexpr int64_t CHUNK = 1024;  // values of a row that are converted and kept in cache; fills whole bytes when packed

#include "common/convert.h"
#include "rows/packing.h"

#include "rows/range.h"

void extend(Range& range, const float* x, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    for (int lane = 0; lane < LANES; ++lane) extend_one(range, lane, x[i + lane]);
  }
  for (; i < count; ++i) extend_one(range, 0, x[i]);
}

// One byte per code, signed or not.
void write_codes(const float* x, int64_t count, float scale, float zero, float floor, float ceil, uint8_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = uint8_t(int32_t(code_of(x[i], scale, zero, floor, ceil)));
}

void butterflies(float* x, int64_t size, int64_t half);
void transform(float* x, int64_t size) { butterflies(x, size, 1); }

#include "rows/quantize.h"

#include "canonical/quads.h"

#include "common/height.h"

template <int ROWS>
void float_micro(Height<ROWS>, const float* x, const float* panel, int64_t depth, float* sums) {
  float total[ROWS][PANEL_N] = {};
  for (int64_t j = 0; j < depth; ++j, x += ROWS, panel += PANEL_N) {
    for (int r = 0; r < ROWS; ++r) {
      for (int n = 0; n < PANEL_N; ++n) total[r][n] += x[r] * panel[n];
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int n = 0; n < PANEL_N; ++n) sums[r * TILE_N + n] += total[r][n];
  }
}

#include "canonical/micro_scalar.h"

#include "canonical/tiles.h"

}  // namespace

const Kernels scalar_kernels = {
    pack_rows,        unpack_rows,        dequantize_rows, quantize_rows, hadamard_rows,
    kv_quantize_rows, kv_dequantize_rows, pack_floats,     float_tile,    pack_tokens,
    integer_tile,
};

}  // namespace dfq
