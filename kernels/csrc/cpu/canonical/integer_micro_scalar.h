// The integer product of a block of rows and a panel in plain C++.
#pragma once
#include <cstdint>
#include <cstring>

#include "canonical/canonical_kernels.h"
#include "common/height.h"
#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

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

}  // namespace
}  // namespace dfq::DFQ_ISA
