// Loops over the values of a row in plain C++: its range, and its codes. extend: the range, `count` values further;
// write_codes: one byte per code, signed or not.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "rows/range.h"

namespace dfq::DFQ_ISA {
namespace {

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

}  // namespace
}  // namespace dfq::DFQ_ISA
