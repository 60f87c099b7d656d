// The functions of elementwise.h with AVX-512, a vector at a time from load to store: the same bits.
#pragma once
#include <cmath>
#include <cstdint>

#include "common/integers.h"
#include "common/isa.h"
#include "common/limits.h"
#include "common/simd_avx512.h"
#include "dfq_abi.h"
#include "rows/load_avx512.h"

namespace dfq::DFQ_ISA {
namespace {

template <int TYPE>
inline void store16(__m512 v, void* x, int64_t at, __mmask16 mask) {
  if (TYPE == DFQ_FLOAT32) return _mm512_mask_storeu_ps(static_cast<float*>(x) + at, mask, v);
  const __m256i half = TYPE == DFQ_BFLOAT16 ? to_bf16(v) : _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(x) + at, mask, half);
}

// To TYPE and back: where a torch module would have stored a tensor.
template <int TYPE>
inline __m512 rounded(__m512 v) {
  if (TYPE == DFQ_FLOAT32) return v;
  if (TYPE == DFQ_FLOAT16) return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(to_bf16(v)), 16));
}

inline __m512 times(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
inline __m512 added(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }

// exp(x) to about 1 unit in the last place; 0 below -87, that of 88 above it.
inline __m512 exp16(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
  x = _mm512_min_ps(x, _mm512_set1_ps(88.0f));
  const __m512 magic = _mm512_set1_ps(ROUND_MAGIC);
  const __m512 n = _mm512_sub_ps(added(times(x, _mm512_set1_ps(LOG2_E)), magic), magic);
  const __m512 coarse = _mm512_sub_ps(x, times(n, _mm512_set1_ps(0.693359375f)));
  const __m512 r = added(coarse, times(n, _mm512_set1_ps(2.12194440e-4f)));
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = added(times(p, r), _mm512_set1_ps(1.3981999507e-3f));
  p = added(times(p, r), _mm512_set1_ps(8.3334519073e-3f));
  p = added(times(p, r), _mm512_set1_ps(4.1665795894e-2f));
  p = added(times(p, r), _mm512_set1_ps(1.6666665459e-1f));
  p = added(times(p, r), _mm512_set1_ps(5.0000001201e-1f));
  p = added(added(times(p, times(r, r)), r), _mm512_set1_ps(1.0f));
  const __m512i exponent = _mm512_slli_epi32(_mm512_cvttps_epi32(n), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}

void rmsnorm(const void* x, int type, int64_t count, const float* weight, float eps, void* y) {
  with_type(type, [&](auto tag) {
    constexpr int TYPE = decltype(tag)::value;
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += 16) {
      const __m512 v = load16<TYPE>(x, i, first_lanes(count - i));
      squares = added(squares, times(v, v));
    }
    alignas(64) float sums[16];
    _mm512_store_ps(sums, squares);
    double total = 0.0;
    for (float sum : sums) total += double(sum);
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(float(total / double(count)) + eps));
    for (int64_t i = 0; i < count; i += 16) {
      const __mmask16 mask = first_lanes(count - i);
      const __m512 v = rounded<TYPE>(times(load16<TYPE>(x, i, mask), factor));
      store16<TYPE>(times(v, _mm512_maskz_loadu_ps(mask, weight + i)), y, i, mask);
    }
  });
}

void add(void* x, const void* y, int type, int64_t from, int64_t count) {
  with_type(type, [&](auto tag) {
    constexpr int TYPE = decltype(tag)::value;
    for (int64_t i = 0; i < count; i += 16) {
      const __mmask16 mask = first_lanes(count - i);
      store16<TYPE>(added(load16<TYPE>(x, from + i, mask), load16<TYPE>(y, from + i, mask)), x, from + i, mask);
    }
  });
}

void rope(void* x, int type, int64_t at, int64_t heads, int64_t dim, const float* cos, const float* sin) {
  const int64_t half = dim / 2;
  with_type(type, [&](auto tag) {
    constexpr int TYPE = decltype(tag)::value;
    for (int64_t head = 0; head < heads; ++head, at += dim) {
      for (int64_t i = 0; i < half; i += 16) {
        const __mmask16 mask = first_lanes(half - i);
        const __m512 a = load16<TYPE>(x, at + i, mask), b = load16<TYPE>(x, at + half + i, mask);
        const auto turned = [&](__m512 own, __m512 other, int64_t j) {
          const __m512 by_cos = rounded<TYPE>(times(own, _mm512_maskz_loadu_ps(mask, cos + j)));
          return added(by_cos, rounded<TYPE>(times(other, _mm512_maskz_loadu_ps(mask, sin + j))));
        };
        const __m512 minus_b = _mm512_xor_ps(b, _mm512_set1_ps(-0.0f));
        store16<TYPE>(turned(a, minus_b, i), x, at + i, mask);
        store16<TYPE>(turned(b, a, half + i), x, at + half + i, mask);
      }
    }
  });
}

void silu_mul(const void* gate, const void* up, int type, int64_t from, int64_t count, void* out) {
  with_type(type, [&](auto tag) {
    constexpr int TYPE = decltype(tag)::value;
    const __m512 one = _mm512_set1_ps(1.0f);
    for (int64_t i = 0; i < count; i += 16) {
      const __mmask16 mask = first_lanes(count - i);
      const __m512 g = load16<TYPE>(gate, from + i, mask), u = load16<TYPE>(up, from + i, mask);
      const __m512 power = exp16(_mm512_xor_ps(g, _mm512_set1_ps(-0.0f)));
      const __m512 silu = rounded<TYPE>(_mm512_div_ps(g, added(one, power)));
      store16<TYPE>(times(silu, u), out, from + i, mask);
    }
  });
}

}  // namespace
}  // namespace dfq::DFQ_ISA
