// Products of a block of rows and a panel of 16 outputs (tiles.h) in plain C++.
#pragma once
#include <cstdint>
#include <cstring>

#include "canonical/canonical_kernels.h"
#include "canonical/integer_micro_scalar.h"
#include "common/height.h"
#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

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

}  // namespace
}  // namespace dfq::DFQ_ISA
