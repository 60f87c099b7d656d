// The range of a row and the codes of its values, value by value. The arithmetic of scales and codes is that of the
// reference (quantize_per_token in Python), operation by operation. Each instruction set has its own loops over them
// (codes.h).
#pragma once
#include <cstdint>

#include "common/convert.h"
#include "common/isa.h"
#include "common/lanes.h"

namespace dfq::DFQ_ISA {
namespace {

struct Range {
  float low[LANES], high[LANES];  // low <= 0 <= high
  float bad[LANES];               // NaN once the row holds NaN or Inf, else zero
};

void start(Range& range) {
  for (int lane = 0; lane < LANES; ++lane) range.low[lane] = range.high[lane] = range.bad[lane] = 0.0f;
}

inline void extend_one(Range& range, int lane, float x) {
  range.low[lane] = x < range.low[lane] ? x : range.low[lane];
  range.high[lane] = x > range.high[lane] ? x : range.high[lane];
  range.bad[lane] += x * 0.0f;
}

// round(x / scale) + zero, clamped to [floor, ceil]. The first clamp keeps round_even inside its domain and changes
// nothing: floor, ceil and zero are smaller than 256.
inline float code_of(float x, float scale, float zero, float floor, float ceil) {
  float code = x / scale;
  code = code > -1024.0f ? code : -1024.0f;
  code = code < 1024.0f ? code : 1024.0f;
  code = round_even(code) + zero;
  code = code > floor ? code : floor;
  return code < ceil ? code : ceil;
}

}  // namespace
}  // namespace dfq::DFQ_ISA
