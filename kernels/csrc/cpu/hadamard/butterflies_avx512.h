// Sylvester-Hadamard transforms of rows in registers of AVX-512. Stages run from the narrowest to the widest, as
// everywhere.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "common/simd_avx512.h"
#include "dfq_abi.h"
#include "rows/load_avx512.h"

namespace dfq::DFQ_ISA {
namespace {

// Stages 1, 2, 4, 8 inside a register: a swap, and a product with signs, which is exact.
template <int STAGES>
inline __m512 stages_in_register(__m512 v) {
  const auto signs = [](int bit) {
    const __mmask16 odd = _mm512_test_epi32_mask(lanes(), _mm512_set1_epi32(bit));
    return _mm512_mask_blend_ps(odd, _mm512_set1_ps(1.0f), _mm512_set1_ps(-1.0f));
  };
  if (STAGES > 0) v = _mm512_fmadd_ps(v, signs(1), _mm512_permute_ps(v, 0xb1));
  if (STAGES > 1) v = _mm512_fmadd_ps(v, signs(2), _mm512_permute_ps(v, 0x4e));
  if (STAGES > 2) v = _mm512_fmadd_ps(v, signs(4), _mm512_shuffle_f32x4(v, v, 0xb1));
  if (STAGES > 3) v = _mm512_fmadd_ps(v, signs(8), _mm512_shuffle_f32x4(v, v, 0x4e));
  return v;
}

// Loops over registers are unrolled by hand or by pragma: an array that is indexed at run time lives in memory.
// Additions and multiply-adds have execution units of their own, so every other butterfly is done by the latter, by a
// factor of one.
template <int COUNT, int HALF = 1>
inline void butterflies(__m512* v, __m512 one) {
  if constexpr (HALF < COUNT) {
#pragma GCC unroll 16
    for (int i = 0; i < COUNT / 2; ++i) {
      const int j = i / HALF * 2 * HALF + i % HALF;
      const __m512 a = v[j], b = v[j + HALF];
      v[j] = _mm512_add_ps(a, b);
      v[j + HALF] = _mm512_fnmadd_ps(b, one, a);
    }
    butterflies<COUNT, 2 * HALF>(v, one);
  }
}

inline __m512 opaque_one() {  // one, which the compiler must not see through
  __m512 one = _mm512_set1_ps(1.0f);
  asm volatile("" : "+v"(one));
  return one;
}

// COUNT registers `step` values apart -> all stages between them. LAST: times factor, and measured.
template <int COUNT, bool LAST>
inline void finish(__m512* v, float* to, int64_t step, __m512 factor, __m512 one, RowRange& range) {
  butterflies<COUNT>(v, one);
#pragma GCC unroll 16
  for (int i = 0; i < COUNT; ++i) {
    if (LAST) {
      v[i] = _mm512_mul_ps(v[i], factor);
      range.add(v[i]);
    }
    _mm512_storeu_ps(to + i * step, v[i]);
  }
}

template <int TYPE, int COUNT, bool LAST>
void first_pass(const void* x, int64_t at, int64_t count, float* to, __m512 factor, RowRange& range) {
  RowRange local = range;
  const __m512 one = opaque_one();
  for (int64_t i = 0; i < count; i += 16 * COUNT) {
    __m512 v[COUNT];
    if (COUNT == 1) v[0] = load16<TYPE>(x, at + i);
#pragma GCC unroll 8
    for (int c = 0; c + 1 < COUNT; c += 2) load32<TYPE>(x, at + i + 16 * c, v[c], v[c + 1]);
#pragma GCC unroll 16
    for (int c = 0; c < COUNT; ++c) v[c] = stages_in_register<4>(v[c]);
    finish<COUNT, LAST>(v, to + i, 16, factor, one, local);
  }
  range = local;
}

// Parts narrower than a register
template <int TYPE, int STAGES, bool LAST>
void narrow_pass(const void* x, int64_t at, int64_t count, float* to, __m512 factor, RowRange& range) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = first_lanes(count - i);
    __m512 v = stages_in_register<STAGES>(load16<TYPE>(x, at + i, mask));
    if (LAST) {
      v = _mm512_mul_ps(v, factor);
      range.add(v);
    }
    _mm512_mask_storeu_ps(to + i, mask, v);
  }
}

template <int COUNT, bool LAST>
void wide_pass(float* x, int64_t count, int64_t half, __m512 factor, RowRange& range) {
  RowRange local = range;
  const __m512 one = opaque_one();
  for (int64_t at = 0; at < count; at += COUNT * half) {
    for (int64_t i = at; i < at + half; i += 16) {
      __m512 v[COUNT];
#pragma GCC unroll 16
      for (int c = 0; c < COUNT; ++c) v[c] = _mm512_loadu_ps(x + i + c * half);
      finish<COUNT, LAST>(v, x + i, half, factor, one, local);
    }
  }
  range = local;
}

// All parts of one block: x of TYPE from `at` on -> to [count].
template <int TYPE, bool LAST>
void sylvester(const void* x, int64_t at, int64_t count, int64_t size, float* to, float norm, RowRange& range) {
  const __m512 factor = _mm512_set1_ps(norm);
  switch (size) {
    case 1: return narrow_pass<TYPE, 0, LAST>(x, at, count, to, factor, range);
    case 2: return narrow_pass<TYPE, 1, LAST>(x, at, count, to, factor, range);
    case 4: return narrow_pass<TYPE, 2, LAST>(x, at, count, to, factor, range);
    case 8: return narrow_pass<TYPE, 3, LAST>(x, at, count, to, factor, range);
    case 16: return first_pass<TYPE, 1, LAST>(x, at, count, to, factor, range);
    case 32: return first_pass<TYPE, 2, LAST>(x, at, count, to, factor, range);
    case 64: return first_pass<TYPE, 4, LAST>(x, at, count, to, factor, range);
    case 128: return first_pass<TYPE, 8, LAST>(x, at, count, to, factor, range);
    case 256: return first_pass<TYPE, 16, LAST>(x, at, count, to, factor, range);
    default: first_pass<TYPE, 16, false>(x, at, count, to, factor, range);
  }
  for (int64_t half = 256; half < size;) {
    const int64_t left = size / half;
    const bool last = LAST && left <= 16;
    if (left >= 16) (last ? wide_pass<16, true> : wide_pass<16, false>)(to, count, half, factor, range);
    else if (left == 8) (last ? wide_pass<8, true> : wide_pass<8, false>)(to, count, half, factor, range);
    else if (left == 4) (last ? wide_pass<4, true> : wide_pass<4, false>)(to, count, half, factor, range);
    else (last ? wide_pass<2, true> : wide_pass<2, false>)(to, count, half, factor, range);
    half *= left >= 16 ? 16 : left;
  }
}

// Memory that is needed next, fetched line by line while something else is computed: rows of 28 KB and more are too far
// apart for the processor to foresee. stride 0: nothing is.
struct Prefetch {
  const char *row, *codes;
  int64_t stride;  // bytes of a row in a step, of which codes have at most half as many

  void step() {
    _mm_prefetch(row, _MM_HINT_T1);
    _mm_prefetch(codes, _MM_HINT_T1);
    row += stride;
    codes += stride / 2;
  }
};

}  // namespace
}  // namespace dfq::DFQ_ISA
