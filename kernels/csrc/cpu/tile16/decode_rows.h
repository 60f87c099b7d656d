// Decode with tiles on instruction sets without products of bfloat16 pairs or a layout of rows of their own: rows
// become float or codes, [m][k8].
#pragma once
#include <cstdint>
#include <cstring>

#include "common/convert.h"
#include "common/integers.h"
#include "common/isa.h"
#include "tile16/blocks.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

int64_t float_bytes(int64_t m, const Tile16Weight& w, int) { return w.blocks * m * TILE16_DEPTH * 4; }

inline float float_of(float value) { return value; }
inline float float_of(uint16_t value) { return load_bf16(value); }

// Sums of each group of one row of k8 values, float or bfloat16: the same order, so the same bits.
template <typename T>
void sum_groups(const T* row, const Tile16Weight& w, float* x_sums) {
  const int64_t width = w.blocks * TILE16_DEPTH;
  for (int64_t group = 0; group < w.groups; ++group) {
    const int64_t last = minimum(width, (group + 1) * w.group);
    float sums[TILE16_DEPTH] = {};
    for (int64_t i = group * w.group; i < last; i += TILE16_DEPTH) {
      for (int64_t c = 0; c < TILE16_DEPTH && i + c < width; ++c) sums[c] += float_of(row[i + c]);
    }
    for (int64_t c = 1; c < TILE16_DEPTH; ++c) sums[0] += sums[c];
    x_sums[group] = sums[0];
  }
}

void prepare_float(const FloatRows& x, const Tile16Weight& w, void* rows, float* x_sums) {
  const int64_t width = w.blocks * TILE16_DEPTH;
  for (int64_t r = 0; r < x.m; ++r) {
    float* to = static_cast<float*>(rows) + r * width;
    load_floats(x.x, x.type, r * w.k, w.k, to);
    for (int64_t i = w.k; i < width; ++i) to[i] = 0.0f;
    sum_groups(to, w, x_sums + r * w.groups);
  }
}

int64_t integer_bytes(int64_t m, const Tile16Weight& w) { return w.blocks * m * TILE16_DEPTH; }

void prepare_integer(const IntegerRows& x, const Tile16Weight& w, void* rows, int32_t* q_sums) {
  const int64_t width = w.blocks * TILE16_DEPTH;
  for (int64_t r = 0; r < x.m; ++r) {
    const int8_t* q = x.q + r * w.k;
    int8_t* to = static_cast<int8_t*>(rows) + r * width;
    std::memcpy(to, q, size_t(w.k));
    std::memset(to + w.k, 0, size_t(width - w.k));
    for (int64_t group = 0; group < w.groups; ++group) {
      int32_t sum = 0;
      for (int64_t i = group * w.group; i < minimum(w.k, (group + 1) * w.group); ++i) sum += q[i];
      q_sums[r * w.groups + group] = sum;
    }
  }
}

// What a tile needs of its weight in one group.
struct Column {
  float scale[TILE16_ROWS], shift[TILE16_ROWS];  // shift: 8 - zero
  uint32_t zero[TILE16_ROWS], codes[TILE16_ROWS];  // codes: sum of (u - zero), where the activations have zero points
};

void load_column(const Tile16Call& call, int64_t group, int64_t tile, Column& column) {
  const Tile16Weight& w = *call.weight;
  const int64_t at = group * w.n16 + tile * TILE16_ROWS;
  const uint32_t count = uint32_t(minimum(w.group, w.k - group * w.group));
  for (int64_t r = 0; r < TILE16_ROWS; ++r) {
    column.scale[r] = load_bf16(w.scale[at + r]);
    column.zero[r] = w.zero ? w.zero[at + r] : 8;
    column.shift[r] = 8.0f - float(int32_t(column.zero[r]));
    column.codes[r] = call.x_zero ? uint32_t(w.sums[at + r]) - column.zero[r] * count : 0;
  }
}

// totals += scale * exact sums; the order of the operations is that of the reference. Unsigned: exact modulo 2^32.
void add_integers(const Tile16Call& call, const Column& column, int64_t group, int64_t row, uint32_t x_zero,
                  const int32_t* sums, float* totals) {
  const uint32_t q_sum = uint32_t(call.q_sums[row * call.weight->groups + group]);
  for (int64_t r = 0; r < TILE16_ROWS; ++r) {
    const uint32_t exact = uint32_t(sums[r]) - column.zero[r] * q_sum - x_zero * column.codes[r];
    totals[r] += float(int32_t(exact)) * column.scale[r];
  }
}

// sums: products with u - 8
void add_floats(const Tile16Call& call, const Column& column, int64_t group, int64_t row, const float* sums,
                float* totals) {
  const float x_sum = call.x_sums[row * call.weight->groups + group];
  for (int64_t r = 0; r < TILE16_ROWS; ++r) {
    // without zero points no term 0 * x_sum: it would make NaN of an infinite sum
    const float sum = call.weight->zero ? sums[r] + column.shift[r] * x_sum : sums[r];
    totals[r] += sum * column.scale[r];
  }
}

void finish(const Tile16Call& call, int64_t row, int64_t tile, float* totals) {
  const int64_t n = call.weight->n, first = tile * TILE16_ROWS, width = minimum(TILE16_ROWS, n - first);
  if (call.x_scale) {
    for (int64_t r = 0; r < width; ++r) totals[r] *= call.x_scale[row];
  }
  if (call.out.bias) {
    for (int64_t r = 0; r < width; ++r) totals[r] += call.out.bias[first + r];
  }
  store_floats(totals, width, call.out.type, call.out.y, row * n + first);
}

// Rows in blocks of STEP, each block over a tile that the first one has brought into the cache.
void decode_integer(const Tile16Call& call, int64_t begin, int64_t end) {
  const Tile16Weight& w = *call.weight;
  const int64_t depth = w.group / TILE16_DEPTH, width = w.blocks * TILE16_DEPTH;
  const int8_t* rows = static_cast<const int8_t*>(call.rows);
  const int32_t none[DECODE_ROWS] = {};  // gcc makes masked loads of a choice row by row, slow where nothing is mapped
  const int32_t* x_zero = call.x_zero ? call.x_zero : none;
  for (int64_t tile = begin; tile < end; ++tile) {
    alignas(64) float totals[DECODE_ROWS][TILE16_ROWS] = {};
    for (int64_t group = 0; group < w.groups; ++group) {
      Column column;
      load_column(call, group, tile, column);
      const int64_t first = group * depth, last = group + 1 < w.groups ? first + depth : w.blocks;
      const uint8_t* in = w.tiles + (tile * w.blocks + first) * TILE16_BYTES;
      for (int64_t row = 0; row < call.m; row += STEP) {
        const int64_t count = minimum(STEP, call.m - row);
        alignas(64) int32_t sums[STEP][TILE16_ROWS] = {};
        integer_block(in, last - first, rows + row * width + first * TILE16_DEPTH, width, count, sums);
        for (int64_t r = 0; r < count; ++r) {
          add_integers(call, column, group, row + r, uint32_t(x_zero[row + r]), sums[r], totals[row + r]);
        }
      }
    }
    for (int64_t row = 0; row < call.m; ++row) finish(call, row, tile, totals[row]);
  }
}

// T: of the prepared rows
template <typename T>
void decode_values(const Tile16Call& call, int64_t begin, int64_t end) {
  const Tile16Weight& w = *call.weight;
  const int64_t depth = w.group / TILE16_DEPTH, width = w.blocks * TILE16_DEPTH;
  const T* rows = static_cast<const T*>(call.rows);
  for (int64_t tile = begin; tile < end; ++tile) {
    alignas(64) float totals[DECODE_ROWS][TILE16_ROWS] = {};
    for (int64_t group = 0; group < w.groups; ++group) {
      Column column;
      load_column(call, group, tile, column);
      const int64_t first = group * depth, last = group + 1 < w.groups ? first + depth : w.blocks;
      const uint8_t* in = w.tiles + (tile * w.blocks + first) * TILE16_BYTES;
      for (int64_t row = 0; row < call.m; row += STEP) {
        const int64_t count = minimum(STEP, call.m - row);
        alignas(64) float sums[STEP][TILE16_ROWS] = {};
        float_block(in, last - first, rows + row * width + first * TILE16_DEPTH, width, count, sums);
        for (int64_t r = 0; r < count; ++r) add_floats(call, column, group, row + r, sums[r], totals[row + r]);
      }
    }
    for (int64_t row = 0; row < call.m; ++row) finish(call, row, tile, totals[row]);
  }
}

void decode_float(const Tile16Call& call, int, int64_t begin, int64_t end) { decode_values<float>(call, begin, end); }

}  // namespace
}  // namespace dfq::DFQ_ISA
