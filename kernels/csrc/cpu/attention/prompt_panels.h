// Keys and values of a packed cache as panels of codes minus zero points. Format says how a value is stored:
//   keys   [position / 16][quad of values][16 positions][Format::DEPTH values]
//   values [16 values][position / DEPTH][16 values][DEPTH positions]
// DEPTH is what one multiply-add of the format takes: 1 float32, or a pair of bfloat16.
#pragma once
#include <cstdint>
#include <cstring>

#include "attention/prompt_kernels.h"
#include "common/convert.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/kernels.h"
#include "common/lanes.h"
#include "common/limits.h"

namespace dfq::DFQ_ISA {
namespace {

template <class Format>
int64_t key_steps(const PromptCall& call) {
  return ceil_div(call.k.dim, Format::DEPTH);
}

inline int64_t value_panels(const PromptCall& call) { return ceil_div(call.v.dim, LANES); }

template <class Format>
int64_t panel_bytes_of_keys(const PromptCall& call) {
  return call.padded * key_steps<Format>(call) * Format::DEPTH * int64_t(sizeof(typename Format::Value));
}

template <class Format>
int64_t panel_bytes_of_values(const PromptCall& call) {
  return call.padded * value_panels(call) * LANES * int64_t(sizeof(typename Format::Value));
}

// Row `index` of a store as codes minus zero point, `width` values of which those behind dim are zero -> its scale.
inline float load_codes(const StoredRows& rows, int64_t index, int bits, int64_t width, float* to) {
  uint8_t codes[MAX_HEAD_DIM];
  kernels().rows.unpack_rows(rows.packed + index * rows.bytes, rows.dim, bits, codes, 0, 1);
  const int zero = rows.zero ? rows.zero[index] : 1 << (bits - 1);
  for (int64_t d = 0; d < rows.dim; ++d) to[d] = float(int(codes[d]) - zero);
  for (int64_t d = rows.dim; d < width; ++d) to[d] = 0.0f;
  return load_f16(rows.scale[index]);
}

// An exact row, of scale 1. One that holds NaN or Inf becomes zeros of scale NaN, as stored rows do: a weight of zero
// then silences it.
inline float load_exact(const void* from, int type, int64_t index, int64_t dim, int64_t width, float* to) {
  load_floats(from, type, index * dim, dim, to);
  for (int64_t d = dim; d < width; ++d) to[d] = 0.0f;
  float bad = 0.0f;
  for (int64_t d = 0; d < dim; ++d) bad += to[d] * 0.0f;
  if (bad != 0.0f || bad != bad) std::memset(to, 0, size_t(width) * 4);
  return 1.0f + bad;
}

template <class Format>
void fill_panels(const PromptCall& call, int64_t pair, int64_t begin, int64_t end) {
  using Value = typename Format::Value;
  constexpr int64_t DEPTH = Format::DEPTH;
  const int64_t steps = key_steps<Format>(call), panels = value_panels(call), heads = call.batch * call.kv_heads;
  const int64_t key_width = steps * DEPTH, value_width = panels * LANES;
  Value* const keys = reinterpret_cast<Value*>(call.keys + pair * panel_bytes_of_keys<Format>(call));
  Value* const values = reinterpret_cast<Value*>(call.values + pair * panel_bytes_of_values<Format>(call));
  float row[DEPTH][MAX_HEAD_DIM];
  for (int64_t at = begin; at < end; at += DEPTH) {
    for (int64_t i = 0; i < DEPTH; ++i) {
      const int64_t position = at + i, index = position * heads + call.first_pair + pair;
      float scale = 0.0f;
      if (position < call.sinks) scale = load_exact(call.k_sink, call.type, index, call.k.dim, key_width, row[0]);
      else if (position < call.length) scale = load_codes(call.k, index, call.bits, key_width, row[0]);
      else std::memset(row[0], 0, size_t(key_width) * 4);
      call.key_scale[pair * call.padded + position] = scale * call.scaling;
      Value* const to = keys + (position / LANES * steps * LANES + position % LANES) * DEPTH;
      for (int64_t d = 0; d < key_width; ++d) to[d / DEPTH * LANES * DEPTH + d % DEPTH] = Format::value(row[0][d]);
    }
    for (int64_t i = 0; i < DEPTH; ++i) {
      const int64_t position = at + i, index = position * heads + call.first_pair + pair;
      float scale = 0.0f;
      if (position < call.sinks) scale = load_exact(call.v_sink, call.type, index, call.v.dim, value_width, row[i]);
      else if (position < call.length) scale = load_codes(call.v, index, call.bits, value_width, row[i]);
      else std::memset(row[i], 0, size_t(value_width) * 4);
      call.value_scale[pair * call.padded + position] = scale;
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
      Value* const to = values + (panel * call.padded + at) * LANES;
      for (int64_t d = 0; d < LANES; ++d) {
        for (int64_t i = 0; i < DEPTH; ++i) to[d * DEPTH + i] = Format::value(row[i][panel * LANES + d]);
      }
    }
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
