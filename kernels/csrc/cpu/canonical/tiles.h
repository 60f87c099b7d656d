// Products with 4-bit weights, tile by tile. A stretch of the weights of TILE_N output columns is unpacked once into
// panels that the micro-kernels of the instruction set read in order, and used for all rows of the tile:
//   quads  [panel][quad of k][PANEL_N columns][4 codes]   build_quads, integer_micro
//   floats [panel][k][PANEL_N columns]                    spread_quads, float_micro
// The order in which the terms of one output are added depends on k and the groups alone, not on the tile, the block
// or the number of rows.
#pragma once
#include <cstdint>
#include <cstring>

#include "canonical/canonical_kernels.h"
#include "canonical/dequantize.h"
#include "canonical/micro.h"
#include "canonical/quads.h"
#include "common/convert.h"
#include "common/height.h"
#include "common/integers.h"
#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

void pack_floats(const void* x, int type, int64_t m, int64_t k, float* out, int64_t begin, int64_t end) {
  float buffer[BLOCK_M][FLOAT_DEPTH];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t row = block * BLOCK_M, height = minimum(BLOCK_M, m - row);
    float* to = out + row * k;
    for (int64_t at = 0; at < k; at += FLOAT_DEPTH) {
      const int64_t count = minimum(FLOAT_DEPTH, k - at);
      for (int64_t r = 0; r < height; ++r) load_floats(x, type, (row + r) * k + at, count, buffer[r]);
      for (int64_t j = 0; j < count; ++j) {
        for (int64_t r = 0; r < height; ++r) *to++ = buffer[r][j];
      }
    }
  }
}

int pack_tokens(const int8_t* q, const Weight& weight, const Tokens& layout, int8_t* codes, int32_t* sums,
                int64_t begin, int64_t end) {
  const int64_t k = weight.k;
  int peak = 0;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t row = block * BLOCK_M, height = minimum(BLOCK_M, layout.m - row);
    int8_t* start_of_block = codes + row * layout.stride;
    for (int64_t r = 0; r < height; ++r) {
      const int8_t* in = q + (row + r) * k;
      for (int64_t group = 0; group < weight.groups; ++group) {
        const int64_t first = group * weight.group, count = minimum(weight.group, k - first);
        int8_t* to = start_of_block + height * group * layout.group_stride + 4 * r;
        int32_t sum = 0, low = 0, high = 0;
        for (int64_t j = 0; j < count; ++j) {
          const int32_t code = in[first + j];
          sum += code;
          low = code < low ? code : low;
          high = code > high ? code : high;
        }
        sums[(row + r) * weight.groups + group] = sum;
        peak = high > peak ? high : peak;
        peak = -low > peak ? -low : peak;
        int64_t j = 0;
        for (; j + 4 <= count; j += 4, to += 4 * height) std::memcpy(to, in + first + j, 4);
        if (j < count) {
          std::memset(to, 0, 4);
          std::memcpy(to, in + first + j, size_t(count - j));
        }
      }
    }
  }
  return peak;
}

// Per output column of a tile: scale and zero of one group. Columns beyond n: zero.
struct Columns {
  alignas(64) float scale[TILE_N];
  alignas(64) int32_t zero[TILE_N];
};

void load_columns(const Weight& weight, int64_t column, int64_t group, Columns& columns) {
  const int64_t width = minimum(TILE_N, weight.n - column);
  for (int64_t n = 0; n < TILE_N; ++n) {
    columns.scale[n] = n < width ? scale_of(weight, column + n, group) : 0.0f;
    columns.zero[n] = n < width ? zero_of(weight, column + n, group, 4) : 0;
  }
}

inline int64_t panels_of(const Weight& weight, int64_t column) {
  return (minimum(TILE_N, weight.n - column) + PANEL_N - 1) / PANEL_N;
}

void float_tile(const float* x, int64_t m, const Weight& weight, int64_t begin, int64_t end, int64_t column, int type,
                void* out) {
  alignas(64) float panel[TILE_N * FLOAT_DEPTH];
  alignas(64) uint8_t quads[TILE_N * FLOAT_DEPTH];
  alignas(64) float sums[TILE_M * TILE_N];
  Columns columns;
  int64_t loaded = -1;
  const int64_t k = weight.k, panels = panels_of(weight, column);
  std::memset(sums, 0, size_t(end - begin) * TILE_N * 4);
  for (int64_t at = 0; at < k; at += FLOAT_DEPTH) {
    const int64_t depth = minimum(FLOAT_DEPTH, k - at);
    for (int64_t first = at; first < at + depth;) {  // stretches of one group
      const int64_t group = first / weight.group;
      const int64_t count = minimum(at + depth, (group + 1) * weight.group) - first;
      if (group != loaded) load_columns(weight, column, loaded = group, columns);
      for (int64_t p = 0; p < panels; ++p) {
        build_quads(weight, column + p * PANEL_N, first, count, quads);
        spread_quads(quads, count, columns.scale + p * PANEL_N, columns.zero + p * PANEL_N,
                     panel + (p * FLOAT_DEPTH + first - at) * PANEL_N);
      }
      first += count;
    }
    for (int64_t p = 0; p < panels; ++p) {
      for (int64_t row = begin; row < end; row += BLOCK_M) {
        const int64_t height = minimum(BLOCK_M, m - row);
        with_height(height, [&](auto h) {
          float_micro(h, x + row * k + at * height, panel + p * FLOAT_DEPTH * PANEL_N, depth,
                      sums + (row - begin) * TILE_N + p * PANEL_N);
        });
      }
    }
  }
  const int64_t width = minimum(TILE_N, weight.n - column);
  for (int64_t row = begin; row < end; ++row) {
    store_floats(sums + (row - begin) * TILE_N, width, type, out, row * weight.n + column);
  }
}

// totals += scale * (sums with the zero points of both sides taken out). Unsigned: exact modulo 2^32, and the result
// fits. All of it is the arithmetic of the reference, so the bits are the same with every instruction set.
void add_group(const Tokens& tokens, const Weight& weight, const Columns& columns, const int32_t* code_sums,
               int64_t group, int64_t begin, int64_t end, const int32_t* sums, float* totals) {
  const uint32_t count = uint32_t(minimum(weight.group, weight.k - group * weight.group));
  uint32_t zero[TILE_N], weight_sums[TILE_N];
  for (int64_t n = 0; n < TILE_N; ++n) {
    zero[n] = uint32_t(columns.zero[n]);
    weight_sums[n] = uint32_t(code_sums[n]) - zero[n] * count;
  }
  for (int64_t row = begin; row < end; ++row) {
    const uint32_t token_sum = uint32_t(tokens.sums[row * weight.groups + group]);
    const uint32_t token_zero = uint32_t(tokens.zero[row]);
    const int32_t* sum = sums + (row - begin) * TILE_N;
    float* total = totals + (row - begin) * TILE_N;
    for (int64_t n = 0; n < TILE_N; ++n) {
      const uint32_t exact = uint32_t(sum[n]) - zero[n] * token_sum - token_zero * weight_sums[n];
      total[n] += float(int32_t(exact)) * columns.scale[n];
    }
  }
}

void integer_tile(const Tokens& tokens, const Weight& weight, int64_t begin, int64_t end, int64_t column, float* out) {
  alignas(64) uint8_t quads[TILE_N * INTEGER_DEPTH];
  alignas(64) int32_t sums[TILE_M * TILE_N];
  alignas(64) float totals[TILE_M * TILE_N];
  alignas(64) int32_t code_sums[TILE_N];
  Columns columns;
  const int64_t panels = panels_of(weight, column);
  std::memset(totals, 0, size_t(end - begin) * TILE_N * 4);
  if (panels * PANEL_N < TILE_N) std::memset(sums, 0, sizeof sums);
  for (int64_t group = 0; group < weight.groups; ++group) {
    const int64_t first = group * weight.group, last = minimum(weight.k, first + weight.group);
    load_columns(weight, column, group, columns);
    std::memset(code_sums, 0, sizeof code_sums);
    for (int64_t at = first; at < last; at += INTEGER_DEPTH) {
      const int64_t depth = minimum(INTEGER_DEPTH, last - at);
      for (int64_t p = 0; p < panels; ++p) {
        uint8_t* panel = quads + p * PANEL_N * INTEGER_DEPTH;
        build_quads(weight, column + p * PANEL_N, at, depth, panel);
        sum_quads(panel, depth, code_sums + p * PANEL_N);
        for (int64_t row = begin; row < end; row += BLOCK_M) {
          const int64_t height = minimum(BLOCK_M, tokens.m - row);
          const int8_t* q = tokens.codes + row * tokens.stride + height * (group * tokens.group_stride + at - first);
          with_height(height, [&](auto h) {
            integer_micro(h, q, panel, (depth + 3) / 4, tokens.burst, at == first,
                          sums + (row - begin) * TILE_N + p * PANEL_N);
          });
        }
      }
    }
    add_group(tokens, weight, columns, code_sums, group, begin, end, sums, totals);
  }
  const int64_t width = minimum(TILE_N, weight.n - column);
  for (int64_t row = begin; row < end; ++row) {
    const float scale = tokens.scale[row];
    for (int64_t n = 0; n < width; ++n) out[row * weight.n + column + n] = totals[(row - begin) * TILE_N + n] * scale;
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
