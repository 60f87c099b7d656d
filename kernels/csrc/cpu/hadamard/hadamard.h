// Hadamard transforms of rows: a base matrix of any order (x) a Sylvester matrix.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/convert.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/lanes.h"
#include "hadamard/signs.h"
#include "hadamard/sylvester.h"

namespace dfq::DFQ_ISA {
namespace {

// to[j, i] = norm * sum_a base_t[j, a] from[a, i], LANES columns i at a time. Signs: sums of four terms are formed once
// and looked up, see signs.h. Otherwise the terms are added in order.
void apply_base(const float* from, const float* base_t, int64_t order, int64_t size, float norm, float* to) {
  const int64_t groups = order / 4;
  const bool signs = has_signs(base_t, order);
  uint16_t entries[SIGN_ORDER * SIGN_ORDER / 4];
  if (signs) find_entries(base_t, order, entries);
  alignas(64) float table[SIGN_ORDER * 4][LANES];
  for (int64_t i = 0; i < size; i += LANES) {
    const int64_t width = minimum(LANES, size - i);
    for (int64_t group = 0; signs && group < groups; ++group) {
      alignas(64) float in[4][LANES] = {};
      for (int64_t a = 0; a < 4; ++a) {
        const float* values = from + (4 * group + a) * size + i;
        for (int64_t lane = 0; lane < width; ++lane) in[a][lane] = values[lane];
      }
      float (*t)[LANES] = table + 16 * group;
      for (int lane = 0; lane < LANES; ++lane) {
        const float p = in[0][lane] + in[1][lane], m = in[0][lane] - in[1][lane];
        const float q = in[2][lane] + in[3][lane], r = in[2][lane] - in[3][lane];
        t[0][lane] = p + q, t[2][lane] = m + q, t[8][lane] = p + r, t[10][lane] = m + r;
        t[4][lane] = p - r, t[6][lane] = m - r, t[12][lane] = p - q, t[14][lane] = m - q;
      }
      for (int code = 1; code < 16; code += 2) {  // the opposite signs
        for (int lane = 0; lane < LANES; ++lane) t[code][lane] = -t[code ^ 15][lane];
      }
    }
    for (int64_t j = 0; j < order; ++j) {
      alignas(64) float sums[LANES] = {};
      if (signs) {
        const uint16_t* entry = entries + j * groups;
        std::memcpy(sums, table[entry[0]], sizeof sums);
        for (int64_t group = 1; group < groups; ++group) {
          const float* add = table[entry[group]];
          for (int lane = 0; lane < LANES; ++lane) sums[lane] += add[lane];
        }
      } else {
        for (int64_t a = 0; a < order; ++a) {
          for (int64_t lane = 0; lane < width; ++lane) sums[lane] += base_t[j * order + a] * from[a * size + i + lane];
        }
      }
      for (int64_t lane = 0; lane < width; ++lane) to[j * size + i + lane] = sums[lane] * norm;
    }
  }
}

// rows of `block` values; transform(x, size): the power-of-two part, in place
void hadamard_rows(const void* x, int type, int64_t block, const float* base_t, int64_t order, void* out,
                   float* scratch, int64_t begin, int64_t end) {
  const int64_t size = block / order;
  const float norm = float(1.0 / std::sqrt(double(block)));
  for (int64_t row = begin; row < end; ++row) {
    load_floats(x, type, row * block, block, scratch);
    for (int64_t part = 0; part < order; ++part) transform(scratch + part * size, size);
    float* result = scratch;
    if (order > 1) {
      result = scratch + block;
      apply_base(scratch, base_t, order, size, norm, result);
    } else {
      const float factor = norm * base_t[0];
      for (int64_t i = 0; i < block; ++i) result[i] *= factor;
    }
    store_floats(result, block, type, out, row * block);
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
