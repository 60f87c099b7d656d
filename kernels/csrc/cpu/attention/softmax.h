// One tile of positions: integer products -> scores -> weights of the values (a running softmax in base 2) -> sums of
// values.
#pragma once
#include <cstdint>
#include <cstring>

#include "attention/attention_kernels.h"
#include "attention/fixed_point.h"
#include "common/convert.h"
#include "common/isa.h"
#include "common/lanes.h"

namespace dfq::DFQ_ISA {
namespace {

// Scales and zero points of a tile. Behind `count`: zero.
struct TileScales {
  alignas(64) float scale[TILE];
  alignas(64) float zero[TILE];
};

void load_scales(const StoredRows& rows, int64_t at, int64_t stride, int64_t count, int bits, TileScales& to) {
  for (int64_t t = 0; t < count; ++t) {
    to.scale[t] = load_f16(rows.scale[at + t * stride]);
    to.zero[t] = rows.zero ? float(rows.zero[at + t * stride]) : float(1 << (bits - 1));
  }
  for (int64_t t = count; t < TILE; ++t) to.scale[t] = to.zero[t] = 0.0f;
}

// What one line carries from tile to tile, and from the scores of a tile to its values.
struct LineState {
  float peak, total;                 // largest score so far, sum of 2^(score - peak)
  float rescale, step;                // of the sums so far; of the fixed-point weights of this tile
  float zeros[ATTENTION_PARTS];      // sum of weight digits times zero points
  bool active;                       // sees something of this tile
};

void score_tile(const int32_t* dots, int parts, const float* sums, float step, const TileScales& keys, float* s) {
  if (parts == 2) {
    for (int64_t t = 0; t < TILE; ++t) {
      const float low = float(dots[t]) - keys.zero[t] * sums[0];  // exact, as is `high`
      const float high = float(dots[TILE + t]) - keys.zero[t] * sums[1];
      s[t] = (high * 256.0f + low) * (step * keys.scale[t]);
    }
  } else {
    for (int64_t t = 0; t < TILE; ++t) {
      const float low = float(dots[t]) - keys.zero[t] * sums[0];
      const float middle = float(dots[TILE + t]) - keys.zero[t] * sums[1];
      const float high = float(dots[2 * TILE + t]) - keys.zero[t] * sums[2];
      s[t] = ((high * 256.0f + middle) * 256.0f + low) * (step * keys.scale[t]);
    }
  }
}

// Scores s [TILE] -> weights of the values in fixed point, weights [parts][TILE].
void softmax_tile(float* s, const float* mask, const TileScales& values, int parts, LineState& line, int8_t* weights) {
  const Floats lowest = Floats{} + MINUS_INFINITY;
  Floats peaks = lowest, sums = {}, bads = {}, tops = {}, v, scale;
  for (int64_t t = 0; t < TILE; t += LANES) {
    load_lanes(s + t, v);
    load_lanes(values.scale + t, scale);
    Floats bad = v * 0.0f + scale * 0.0f;
    if (mask) {
      Floats masked_lane;
      load_lanes(mask + t, masked_lane);
      select_greater(masked_lane, lowest, v, lowest, v);
      select_greater(masked_lane, lowest, bad, Floats{}, bad);
      store_lanes(v, s + t);
    }
    bads += bad;
    select_greater(v, peaks, v, peaks, peaks);
  }
  const float peak = reduce_max_lanes(peaks, line.peak);
  for (int64_t t = 0; t < TILE; t += LANES) {
    load_lanes(s + t, v);
    load_lanes(values.scale + t, scale);
    Floats p;
    exp2_lanes(v - peak, p);
    sums += p;
    p *= scale;
    select_greater(p, tops, p, tops, tops);
    store_lanes(p, s + t);
  }
  line.rescale = line.peak == MINUS_INFINITY ? 0.0f : exp2_scalar(line.peak - peak);
  line.total = line.total * line.rescale + reduce_sum_lanes(sums) + reduce_sum_lanes(bads);  // NaN, if anything seen is
  line.peak = peak;
  const float top = reduce_max_lanes(tops, 0.0f), inverse = top > MIN_WEIGHT ? largest_fixed(parts) / top : 0.0f;
  line.step = top > MIN_WEIGHT ? top / largest_fixed(parts) : 0.0f;
  Floats zeros[ATTENTION_PARTS] = {}, zero;  // integers below 2^24: exact
  for (int64_t t = 0; t < TILE; t += LANES) {
    Ints digits[ATTENTION_PARTS];
    load_lanes(s + t, v);
    load_lanes(values.zero + t, zero);
    split_bytes(v * inverse, parts, digits);
    for (int part = 0; part < parts; ++part) {
      const Bytes bytes = __builtin_convertvector(digits[part], Bytes);
      std::memcpy(weights + part * TILE + t, &bytes, LANES);
      zeros[part] += __builtin_convertvector(digits[part], Floats) * zero;
    }
  }
  for (int part = 0; part < parts; ++part) line.zeros[part] = reduce_sum_lanes(zeros[part]);
}

// sums = sums * shrink + step * (digits . codes - digits . zeros)
void accumulate_values(const int32_t* products, int64_t width, int parts, const LineState& line, float* sums) {
  const float rescale = line.rescale, step = line.step;
  const float z0 = line.zeros[0], z1 = line.zeros[1], z2 = line.zeros[2];
  if (parts == 2) {
    for (int64_t d = 0; d < width; ++d) {
      const float low = float(products[d]) - z0, high = float(products[width + d]) - z1;
      sums[d] = sums[d] * rescale + (high * 256.0f + low) * step;
    }
  } else {
    for (int64_t d = 0; d < width; ++d) {
      const float low = float(products[d]) - z0, middle = float(products[width + d]) - z1;
      const float high = float(products[2 * width + d]) - z2;
      sums[d] = sums[d] * rescale + ((high * 256.0f + middle) * 256.0f + low) * step;
    }
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
