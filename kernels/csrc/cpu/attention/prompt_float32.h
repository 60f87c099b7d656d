// Attention of many rows in float32: every instruction set, and the types that bfloat16 does not hold.
#pragma once
#include <cstdint>

#include "attention/prompt_attend.h"
#include "common/isa.h"
#include "common/lanes.h"
#include "common/multiply_add.h"

namespace dfq::DFQ_ISA {
namespace {

struct PromptFloat32 {
  using Value = float;
  static constexpr int64_t DEPTH = 1;
  static constexpr int PANELS = DFQ_HAS_AVX512 ? 4 : 1;  // whose sums are in registers together

  static float value(float x) { return x; }

  template <int LINES>
  static void scores(const float* query, int64_t steps, const float* keys, int64_t vectors, const float* scale,
                     float* out) {
    for (int64_t v = 0; v < vectors; v += PANELS) {
      Floats sums[LINES][PANELS] = {};
      const float* const panel = keys + v * steps * LANES;
      for (int64_t d = 0; d < steps; ++d) {
        Floats key[PANELS];
        for (int p = 0; p < PANELS; ++p) load_lanes(panel + (p * steps + d) * LANES, key[p]);
        for (int i = 0; i < LINES; ++i) {
          const Floats q = Floats{} + query[i * steps + d];
          for (int p = 0; p < PANELS; ++p) multiply_add_lanes(sums[i][p], key[p], q);
        }
      }
      for (int p = 0; p < PANELS; ++p) {
        Floats factor;
        load_lanes(scale + (v + p) * LANES, factor);
        for (int i = 0; i < LINES; ++i) store_lanes(sums[i][p] * factor, out + i * PROMPT_TILE + (v + p) * LANES);
      }
    }
  }

  template <bool MASKED>
  static void weights(float* scores, int64_t vectors, const float* scale, Sight sight, PromptLine& line, float* totals,
                      float* to) {
    const Floats lowest = Floats{} + MINUS_INFINITY;
    Floats peaks = lowest, bads = {}, total, s, factor;
    Floats lane;
    for (int i = 0; i < LANES; ++i) lane[i] = float(i);
    const Floats low = Floats{} + (float(sight.low) - 0.5f), high = Floats{} + (float(sight.high) - 0.5f);
    for (int64_t v = 0; v < vectors; ++v) {
      load_lanes(scores + v * LANES, s);
      load_lanes(scale + v * LANES, factor);
      Floats bad = s * 0.0f + factor * 0.0f;
      if (MASKED) {
        const Floats at = lane + float(v * LANES);
        select_greater(at, low, s, lowest, s), select_greater(high, at, s, lowest, s);
        select_greater(at, low, bad, Floats{}, bad), select_greater(high, at, bad, Floats{}, bad);
        store_lanes(s, scores + v * LANES);
      }
      bads += bad;
      select_greater(s, peaks, s, peaks, peaks);
    }
    const float peak = reduce_max_lanes(peaks, line.peak);
    line.rescale = line.peak == peak ? 1.0f : line.peak == MINUS_INFINITY ? 0.0f : exp2_scalar(line.peak - peak);
    line.peak = peak;
    load_lanes(totals, total);
    total = total * line.rescale + bads;  // NaN, if anything seen is
    const float base = peak == MINUS_INFINITY ? 0.0f : peak;
    for (int64_t v = 0; v < vectors; ++v) {
      Floats p;
      load_lanes(scores + v * LANES, s);
      load_lanes(scale + v * LANES, factor);
      exp2_lanes(s - base, p);
      total += p;
      p *= factor;
      if (MASKED) {  // a scale that is not a number, of a position that is not seen
        const Floats at = lane + float(v * LANES);
        select_greater(at, low, p, Floats{}, p), select_greater(high, at, p, Floats{}, p);
      }
      store_lanes(p, to + v * LANES);
    }
    store_lanes(total, totals);
  }

  template <int LINES>
  static void mix(const float* weights, const float* values, int64_t steps, int64_t panels, int64_t stride,
                  const PromptLine* lines, bool, float* out) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      Floats sums[LINES];
      for (int i = 0; i < LINES; ++i) {
        load_lanes(out + (i * panels + panel) * LANES, sums[i]);
        sums[i] *= lines[i].rescale;
      }
      const float* const from = values + panel * stride;
      for (int64_t t = 0; t < steps; ++t) {
        Floats value;
        load_lanes(from + t * LANES, value);
        for (int i = 0; i < LINES; ++i) multiply_add_lanes(sums[i], value, Floats{} + weights[i * PROMPT_TILE + t]);
      }
      for (int i = 0; i < LINES; ++i) store_lanes(sums[i], out + (i * panels + panel) * LANES);
    }
  }
};

}  // namespace
}  // namespace dfq::DFQ_ISA
