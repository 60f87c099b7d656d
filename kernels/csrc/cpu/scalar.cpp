// The instruction set every machine has.
#include <cmath>
#include <cstring>

#include "../dfq_kernels.h"
#include "kernels.h"

namespace dfq {
namespace {

constexpr int64_t CHUNK = 1024;  // values of a row that are converted and kept in cache; fills whole bytes when packed

#include "convert.inc"
#include "codes.inc"

#include "range.inc"

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

#include "rows.inc"

void build_quads(const Weight& weight, int64_t column, int64_t first, int64_t count, uint8_t* quads) {
  uint8_t codes[INTEGER_DEPTH + 4];
  for (int64_t n = 0; n < PANEL_N; ++n) {
    std::memset(codes + count, 0, 4);
    if (column + n < weight.n) {
      unpack_codes(weight.packed + (column + n) * ((weight.k + 1) / 2), first, count, 4, codes);
    } else {
      std::memset(codes, 0, size_t(count));
    }
    for (int64_t j = 0; j < count; j += 4) std::memcpy(quads + (j / 4 * PANEL_N + n) * 4, codes + j, 4);
  }
}

void sum_quads(const uint8_t* quads, int64_t count, int32_t* sums) {
  for (int64_t j = 0; j < count; j += 4, quads += 4 * PANEL_N) {
    for (int64_t n = 0; n < PANEL_N; ++n) {
      for (int64_t i = 0; i < 4; ++i) sums[n] += quads[4 * n + i];
    }
  }
}

void spread_quads(const uint8_t* quads, int64_t count, const float* scale, const int32_t* zero, float* to) {
  for (int64_t j = 0; j < count; ++j, to += PANEL_N) {
    const uint8_t* from = quads + j / 4 * 4 * PANEL_N + j % 4;
    for (int64_t n = 0; n < PANEL_N; ++n) to[n] = float(int32_t(from[4 * n]) - zero[n]) * scale[n];
  }
}

#include "height.inc"

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

template <int ROWS>
void integer_micro(Height<ROWS>, const int8_t* q, const uint8_t* panel, int64_t quads, int, bool fresh, int32_t* sums) {
  int32_t total[ROWS][PANEL_N] = {};
  for (int64_t j = 0; j < quads; ++j, q += 4 * ROWS, panel += 4 * PANEL_N) {
    for (int r = 0; r < ROWS; ++r) {
      for (int n = 0; n < PANEL_N; ++n) {
        for (int i = 0; i < 4; ++i) total[r][n] += int32_t(q[4 * r + i]) * int32_t(panel[4 * n + i]);
      }
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int n = 0; n < PANEL_N; ++n) sums[r * TILE_N + n] = total[r][n] + (fresh ? 0 : sums[r * TILE_N + n]);
  }
}

#include "tiles.inc"

}  // namespace

const Kernels scalar_kernels = {
    pack_rows,        unpack_rows,        dequantize_rows, quantize_rows, hadamard_rows,
    kv_quantize_rows, kv_dequantize_rows, pack_floats,     float_tile,    pack_tokens,
    integer_tile,
};

}  // namespace dfq
