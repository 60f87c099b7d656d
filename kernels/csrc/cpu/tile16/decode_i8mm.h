// Decode with tiles on 64-bit ARM with products of bfloat16 pairs: rows of bfloat16 stay what they are.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/isa.h"
#include "dfq_abi.h"
#include "tile16/decode_rows.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

int64_t value_bytes(int64_t m, const Tile16Weight& w, int type) {
  return type == DFQ_BFLOAT16 ? w.blocks * m * TILE16_DEPTH * 2 : float_bytes(m, w, type);
}

void prepare_values(const FloatRows& x, const Tile16Weight& w, void* rows, float* x_sums) {
  if (x.type != DFQ_BFLOAT16) return prepare_float(x, w, rows, x_sums);
  const int64_t width = w.blocks * TILE16_DEPTH;
  for (int64_t r = 0; r < x.m; ++r) {
    uint16_t* const to = static_cast<uint16_t*>(rows) + r * width;
    std::memcpy(to, static_cast<const uint16_t*>(x.x) + r * w.k, size_t(w.k) * 2);
    std::memset(to + w.k, 0, size_t(width - w.k) * 2);
    sum_groups(to, w, x_sums + r * w.groups);
  }
}

void decode_any(const Tile16Call& call, int type, int64_t begin, int64_t end) {
  if (type == DFQ_BFLOAT16) decode_values<uint16_t>(call, begin, end);
  else decode_float(call, type, begin, end);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
