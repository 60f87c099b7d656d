// Codes of a row: division by the scale, as everywhere, but seldom done as such. A product with the reciprocal is added
// to a constant whose last bit is worth 2^-FRACTION, so that the sum holds the code, rounded down from a half above,
// and its fraction. Both errors, of the product and of the rounded quotient that it stands for, are below the last bit:
// only stretches with a value this close to the middle of two codes are divided.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/convert.h"
#include "common/isa.h"
#include "common/simd_avx512.h"
#include "fused_rows/fused_kernels.h"
#include "rows/load_avx512.h"

namespace dfq::DFQ_ISA {
namespace {

struct Step {
  float scale, shift, floor, ceil, inverse;
  bool narrow, divide;
};

// How a sum is read. Narrow: codes of up to 6 bits, of which the sum's third byte is 64 more. Wide: moved up by two
// bits, the upper half of the sum is 0x1100 more than the code.
template <bool NARROW>
struct Fixed {
  static constexpr float origin = NARROW ? 192.0f : 768.0f;
  static constexpr float unit = NARROW ? 1.0f / 65536 : 1.0f / 16384;  // the last bit of sums near the origin
  static constexpr int reach = NARROW ? 63 : 255;                      // codes before they are clamped
  static constexpr int close = NARROW ? 2 : 4;                         // this many units from a tie are divided
  static constexpr int near = NARROW ? 2 * close : 8 * close;          // the lower half of a sum, that close to a tie
};

// first, first + step, ... in the elements of a register: what a permutation takes every step-th element by
template <typename T>
inline __m512i ramp(int step, int first) {
  alignas(64) T values[64 / sizeof(T)];
  for (int i = 0; i < int(64 / sizeof(T)); ++i) values[i] = T((step * i + first) % 128);
  return _mm512_load_si512(values);
}

// The sums of 64 values -> their codes
template <bool NARROW>
inline __m512i codes_of(const __m512i* sums, const Step& step) {
  const __m512i floor = _mm512_set1_epi8(int8_t(step.floor)), ceil = _mm512_set1_epi8(int8_t(step.ceil));
  if (NARROW) {
    const __m512i third = ramp<int8_t>(4, 2);
    __m512i codes = _mm512_mask_blend_epi8(0xffffffff00000000, _mm512_permutex2var_epi8(sums[0], third, sums[1]),
                                           _mm512_permutex2var_epi8(sums[2], third, sums[3]));
    codes = _mm512_sub_epi8(codes, _mm512_set1_epi8(64));
    return _mm512_min_epi8(_mm512_max_epi8(codes, floor), ceil);
  }
  const __m512i upper = ramp<int16_t>(2, 1), origin = _mm512_set1_epi16(0x1100);
  const __m512i low = _mm512_sub_epi16(_mm512_permutex2var_epi16(sums[0], upper, sums[1]), origin);
  const __m512i high = _mm512_sub_epi16(_mm512_permutex2var_epi16(sums[2], upper, sums[3]), origin);
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  const __m512i codes = _mm512_permutexvar_epi64(order, _mm512_packs_epi16(low, high));
  return _mm512_min_epi8(_mm512_max_epi8(codes, floor), ceil);
}

// The codes of 64 values as the definition has them
inline __m512i codes_by_division(const __m512* v, const Step& step) {
  const __m512 limit = _mm512_set1_ps(1024.0f), low = _mm512_set1_ps(-1024.0f);
  __m512i whole[4];
  for (int c = 0; c < 4; ++c) {
    const __m512 quotient = _mm512_div_ps(v[c], _mm512_set1_ps(step.scale));
    const __m512 held = _mm512_min_ps(_mm512_max_ps(quotient, low), limit);
    whole[c] = _mm512_cvt_roundps_epi32(held, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  const __m512i shift = _mm512_set1_epi16(int16_t(step.shift));
  const __m512i front = _mm512_adds_epi16(_mm512_packs_epi32(whole[0], whole[1]), shift);
  const __m512i back = _mm512_adds_epi16(_mm512_packs_epi32(whole[2], whole[3]), shift);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i codes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(front, back));
  const __m512i floor = _mm512_set1_epi8(int8_t(step.floor)), ceil = _mm512_set1_epi8(int8_t(step.ceil));
  return _mm512_min_epi8(_mm512_max_epi8(codes, floor), ceil);
}

template <int TYPE, bool NARROW>
void write_codes(const void* x, int64_t at, int64_t count, const Step& step, int8_t* to) {
  using Sum = Fixed<NARROW>;
  const __m512 inverse = _mm512_set1_ps(step.inverse);
  const __m512 origin = _mm512_set1_ps(Sum::origin + step.shift + 0.5f + Sum::close * Sum::unit);
  const __m512i near = _mm512_set1_epi16(Sum::near);
  for (int64_t i = 0; i < count; i += 64) {
    const __mmask64 mask = count - i >= 64 ? ~__mmask64(0) : (__mmask64(1) << (count - i)) - 1;
    const auto take = [&](int c) {
      return count - i >= 64 ? load16<TYPE>(x, at + i + 16 * c)
                             : load16<TYPE>(x, at + i + 16 * c, __mmask16(mask >> 16 * c));
    };
    __m512 v[4];
    __m512i sums[4];
    for (int c = 0; c < 4; ++c) {
      v[c] = take(c);
      sums[c] = _mm512_castps_si512(_mm512_fmadd_ps(v[c], inverse, origin));
      if (!NARROW) sums[c] = _mm512_slli_epi32(sums[c], 2);
    }
    const __m512i minimum = _mm512_min_epu16(_mm512_min_epu16(sums[0], sums[1]), _mm512_min_epu16(sums[2], sums[3]));
    const bool ties = step.divide || _mm512_cmplt_epu16_mask(minimum, near);
    const __m512i codes = __builtin_expect(ties, 0) ? codes_by_division(v, step) : codes_of<NARROW>(sums, step);
    if (count - i >= 64) _mm512_storeu_si512(to + i, codes);
    else _mm512_mask_storeu_epi8(to + i, mask, codes);
  }
}

template <int TYPE>
void measure(const void* x, int64_t at, int64_t count, RowRange& range) {
  RowRange local[2];
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    local[0].add(load16<TYPE>(x, at + i));
    local[1].add(load16<TYPE>(x, at + i + 16));
  }
  for (; i < count; i += 16) local[0].add(load16<TYPE>(x, at + i, first_lanes(count - i)));
  range = local[0];
  range.add(local[1]);
}

// Scale, zero point and codes of row `row`, x [k] from value `at` on: quantize_rows of quantize.h.
void write_row(const void* x, int type, int64_t at, int64_t k, const RowRange& range, const Quantized& out,
               int64_t row) {
  const float half = float(1 << (out.bits - 1)), top = 2.0f * half - 1.0f;
  float lowest, highest;
  range.get(lowest, highest);
  const float low = lowest * out.clip, high = highest * out.clip, peak = highest > -lowest ? highest : -lowest;
  Step step = {out.symmetric ? peak * out.clip / (half - 1.0f) : (high - low) / top,
               0.0f,
               -half,
               half - 1.0f,
               0.0f,
               false,
               false};
  int8_t* to = out.codes + row * k;
  if (!(step.scale < INFINITY)) {
    out.scale[row] = NAN;
    out.zero[row] = 0;
    std::memset(to, 0, size_t(k));
    return;
  }
  if (step.scale == 0.0f) step.scale = 1.0f;
  if (!out.symmetric) {
    const float zero = -low / step.scale;
    step.shift = round_even(zero < top ? zero : top) - half;
  }
  step.inverse = 1.0f / step.scale;
  const float reach = half + 2.0f + top * (1.0f / out.clip - 1.0f);  // of codes before they are clamped
  step.narrow = reach < Fixed<true>::reach;
  step.divide = !(step.inverse < INFINITY) || !(reach < Fixed<false>::reach);
  out.scale[row] = step.scale;
  out.zero[row] = int32_t(step.shift);
  with_type(type, [&](auto tag) {
    constexpr int TYPE = decltype(tag)::value;
    (step.narrow ? write_codes<TYPE, true> : write_codes<TYPE, false>)(x, at, k, step, to);
  });
}

void quantize_rows(const void* x, int type, int64_t k, int bits, bool symmetric, float clip, int8_t* codes,
                          float* scale, int32_t* zero, int64_t begin, int64_t end) {
  const Quantized out = {bits, symmetric, clip, codes, scale, zero};
  for (int64_t row = begin; row < end; ++row) {
    RowRange range;
    with_type(type, [&](auto tag) { measure<decltype(tag)::value>(x, row * k, k, range); });
    write_row(x, type, row * k, k, range, out, row);
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
