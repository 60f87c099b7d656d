// Panels of quads of codes (tiles.h) in plain C++.
#pragma once
#include <cstdint>
#include <cstring>

#include "canonical/canonical_kernels.h"
#include "common/integers.h"
#include "common/isa.h"
#include "rows/packing.h"

namespace dfq::DFQ_ISA {
namespace {

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

}  // namespace
}  // namespace dfq::DFQ_ISA
