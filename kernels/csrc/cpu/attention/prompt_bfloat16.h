// Attention of many rows of bfloat16 with AVX-512: VDPBF16PS on codes minus zero points, which bfloat16 holds exactly,
// as it does queries and exact sinks. The weights of values are rounded to bfloat16; scores, softmax and sums are
// float32.
#pragma once
#include <cstdint>

#include "attention/prompt_attend.h"
#include "common/isa.h"
#include "common/simd_avx512.h"
#include "common/unroll.h"

namespace dfq::DFQ_ISA {
namespace {

// 2^x for x <= 0, relative error 3e-6, far below that of a bfloat16 weight; at least 2^-126.
inline __m512 exp2_coarse(__m512 x) {
  const __m512 inside = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);      // NaN stays
  const __m512 f = _mm512_reduce_ps(inside, _MM_FROUND_TO_NEG_INF);     // inside - floor(inside)
  __m512 sum = _mm512_fmadd_ps(_mm512_set1_ps(1.3426693e-2f), f, _mm512_set1_ps(5.2242459e-2f));
  sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(2.4128021e-1f));
  sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(6.9304484e-1f));
  sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(sum, inside);  // times 2^floor(inside)
}

// Lanes low .. high - 1 of the vector that begins at position `at`.
inline __mmask16 lanes_between(const Sight& sight, int64_t at) {
  const auto below = [&](int64_t end) { return (1u << (end < at ? 0 : end > at + 16 ? 16 : end - at)) - 1; };
  return __mmask16(below(sight.high) & ~below(sight.low));
}

struct PromptBfloat16 {
  using Value = uint16_t;
  static constexpr int64_t DEPTH = 2;
  static constexpr int PANELS = 4;

  static uint16_t value(float x) { return uint16_t(float_to_bits(x) >> 16); }  // exact for what it is given

  // The instruction is written out because gcc 12 spills accumulators of its intrinsic.
  static inline __attribute__((always_inline)) void multiply_add(__m512& sum, __m512i a, __m512i b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }

  template <int LINES>
  static void scores(const uint16_t* query, int64_t steps, const uint16_t* keys, int64_t vectors, const float* scale,
                     float* out) {
    for (int64_t v = 0; v < vectors; v += PANELS) {
      __m512 sums[LINES * PANELS];
      unrolled<LINES * PANELS>(DFQ_EACH(i) { sums[i] = _mm512_setzero_ps(); });
      const uint16_t* const panel = keys + v * steps * 32;
      for (int64_t j = 0; j < steps; ++j) {
        __m512i key[PANELS];
        unrolled<PANELS>(DFQ_EACH(p) { key[p] = _mm512_loadu_si512(panel + (p * steps + j) * 32); });
        unrolled<LINES>(DFQ_EACH(i) {
          const __m512i q = dword_x16(query + (i * steps + j) * 2);
          unrolled<PANELS>(DFQ_EACH(p) { multiply_add(sums[i * PANELS + p], key[p], q); });
        });
      }
      unrolled<PANELS>(DFQ_EACH(p) {
        const __m512 factor = _mm512_loadu_ps(scale + (v + p) * 16);
        unrolled<LINES>(DFQ_EACH(i) {
          _mm512_storeu_ps(out + i * PROMPT_TILE + (v + p) * 16, _mm512_mul_ps(sums[i * PANELS + p], factor));
        });
      });
    }
  }

  template <bool MASKED>
  static void weights(float* scores, int64_t vectors, const float* scale, Sight sight, PromptLine& line, float* totals,
                      uint16_t* to) {
    const __m512 lowest = _mm512_set1_ps(MINUS_INFINITY);
    __m512 peaks = lowest;
    for (int64_t v = 0; v < vectors; ++v) {
      __m512 s = _mm512_loadu_ps(scores + v * 16);
      if (MASKED) {
        s = _mm512_mask_mov_ps(lowest, lanes_between(sight, v * 16), s);
        _mm512_storeu_ps(scores + v * 16, s);
      }
      peaks = _mm512_max_ps(s, peaks);  // not NaN, which reaches the total below
    }
    const float found = _mm512_reduce_max_ps(peaks), peak = found > line.peak ? found : line.peak;
    line.rescale = 1.0f;
    if (line.peak != peak) {
      line.rescale = line.peak == MINUS_INFINITY ? 0.0f : exp2_scalar(line.peak - peak);
      line.peak = peak;
    }
    const __m512 base = _mm512_set1_ps(peak == MINUS_INFINITY ? 0.0f : peak);
    __m512 total = _mm512_mul_ps(_mm512_loadu_ps(totals), _mm512_set1_ps(line.rescale));
    for (int64_t v = 0; v < vectors; v += 2) {
      __m512 weighted[2];
      unrolled<2>(DFQ_EACH(half) {
        const int64_t at = (v + half) * 16;
        __m512 p = exp2_coarse(_mm512_sub_ps(_mm512_loadu_ps(scores + at), base));
        if (MASKED) p = _mm512_maskz_mov_ps(lanes_between(sight, at), p);
        total = _mm512_add_ps(total, p);
        p = _mm512_mul_ps(p, _mm512_loadu_ps(scale + at));
        if (MASKED) p = _mm512_maskz_mov_ps(lanes_between(sight, at), p);  // scales of unseen positions may be NaN
        weighted[half] = p;
      });
      _mm512_storeu_si512(to + v * 16, __m512i(_mm512_cvtne2ps_pbh(weighted[1], weighted[0])));
    }
    _mm512_storeu_ps(totals, total);
  }

  template <int LINES>
  static void mix(const uint16_t* weights, const uint16_t* values, int64_t steps, int64_t panels, int64_t stride,
                  const PromptLine* lines, bool rescaled, float* out) {
    int64_t panel = 0;
    for (; panel + 4 <= panels; panel += 4) {
      mix_panels<LINES, 4>(weights, values + panel * stride, steps, panels, stride, lines, rescaled, out + panel * 16);
    }
    for (; panel < panels; ++panel) {
      mix_panels<LINES, 1>(weights, values + panel * stride, steps, panels, stride, lines, rescaled, out + panel * 16);
    }
  }

  template <int LINES, int COUNT>
  static void mix_panels(const uint16_t* weights, const uint16_t* values, int64_t steps, int64_t panels,
                         int64_t stride, const PromptLine* lines, bool rescaled, float* out) {
    __m512 sums[LINES * COUNT];
    unrolled<LINES>(DFQ_EACH(i) {
      unrolled<COUNT>(DFQ_EACH(p) {
        sums[i * COUNT + p] = _mm512_loadu_ps(out + (i * panels + p) * 16);
        if (rescaled) sums[i * COUNT + p] = _mm512_mul_ps(sums[i * COUNT + p], _mm512_set1_ps(lines[i].rescale));
      });
    });
    for (int64_t j = 0; j < steps; ++j) {
      __m512i value[COUNT];
      unrolled<COUNT>(DFQ_EACH(p) { value[p] = _mm512_loadu_si512(values + p * stride + j * 32); });
      unrolled<LINES>(DFQ_EACH(i) {
        const __m512i weight = dword_x16(weights + i * PROMPT_TILE + 2 * j);
        unrolled<COUNT>(DFQ_EACH(p) { multiply_add(sums[i * COUNT + p], value[p], weight); });
      });
    }
    unrolled<LINES>(DFQ_EACH(i) {
      unrolled<COUNT>(DFQ_EACH(p) { _mm512_storeu_ps(out + (i * panels + p) * 16, sums[i * COUNT + p]); });
    });
  }
};

}  // namespace
}  // namespace dfq::DFQ_ISA
