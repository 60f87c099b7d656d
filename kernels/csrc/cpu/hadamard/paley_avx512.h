// A base known when this is compiled: the signed sums of four parts (signs.h) stay in registers and every output
// takes the ones it needs, where a table in memory would be written and read. The same sums in the same order. It is
// Paley's base of order 28, which serves widths of 7 * 2^k, over the field of 27 elements as the package's finite
// fields numbers them; any other base of that order takes the table.
#pragma once
#include <cstdint>
#include <utility>

#include "common/isa.h"
#include "common/simd_avx512.h"
#include "hadamard/butterflies_avx512.h"
#include "rows/load_avx512.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int PALEY_ORDER = 28, PALEY_GROUPS = 7, PALEY_PANEL = 14;  // outputs at a time
constexpr uint32_t PALEY_SQUARES = 0x11be2d2;                        // bit e: element e is a square, and not zero

// whether base_t[j][a] is negative
constexpr bool paley_negative(int j, int a) {
  if (j == 0 || a == 0 || a == j) return j == 0 && a > 0;
  const int x = a - 1, y = j - 1;  // polynomials, whose difference is that of their coefficients modulo 3
  const int low = (x + 3 - y % 3) % 3, middle = (x / 3 + 3 - y / 3 % 3) % 3, high = (x / 9 + 3 - y / 9) % 3;
  return !(PALEY_SQUARES >> (low + 3 * middle + 9 * high) & 1);
}

bool is_paley(const float* base_t, int64_t order) {
  if (order != PALEY_ORDER) return false;
  int others = 0;
  for (int j = 0; j < PALEY_ORDER; ++j) {
    for (int a = 0; a < PALEY_ORDER; ++a)
      others |= base_t[j * PALEY_ORDER + a] != (paley_negative(j, a) ? -1.0f : 1.0f);
  }
  return !others;
}

// The term of a group that output J takes; every other output adds it by a multiply-add, see butterflies.
template <int GROUP, int J>
inline void paley_add(__m512& sum, const __m512* terms, __m512 one) {
  constexpr int code = paley_negative(J, 4 * GROUP) + 2 * paley_negative(J, 4 * GROUP + 1) +
                       4 * paley_negative(J, 4 * GROUP + 2) + 8 * paley_negative(J, 4 * GROUP + 3);
  constexpr bool negative = code & 1;  // of opposite terms, the one in which x0 is positive is at hand
  const __m512 term = terms[(negative ? code ^ 15 : code) / 2];
  if constexpr (GROUP == 0) sum = negative ? _mm512_xor_ps(term, _mm512_set1_ps(-0.0f)) : term;
  else if constexpr (J % 2 == 0) sum = negative ? _mm512_sub_ps(sum, term) : _mm512_add_ps(sum, term);
  else sum = negative ? _mm512_fnmadd_ps(term, one, sum) : _mm512_fmadd_ps(term, one, sum);
  asm volatile("" : "+v"(sum));  // not later: put off, additions would keep more terms than there are registers
}

template <int GROUP, int FIRST, int... J>
inline void paley_group(const float (*in)[16], __m512* sums, __m512 one, std::integer_sequence<int, J...>) {
  const __m512 x0 = _mm512_load_ps(in[4 * GROUP]), x1 = _mm512_load_ps(in[4 * GROUP + 1]);
  const __m512 x2 = _mm512_load_ps(in[4 * GROUP + 2]), x3 = _mm512_load_ps(in[4 * GROUP + 3]);
  const __m512 p = _mm512_add_ps(x0, x1), m = _mm512_fnmadd_ps(x1, one, x0);
  const __m512 q = _mm512_add_ps(x2, x3), r = _mm512_fnmadd_ps(x3, one, x2);
  const __m512 terms[8] = {_mm512_add_ps(p, q),         _mm512_fmadd_ps(m, one, q), _mm512_sub_ps(p, r),
                           _mm512_fnmadd_ps(r, one, m), _mm512_fmadd_ps(p, one, r), _mm512_add_ps(m, r),
                           _mm512_fnmadd_ps(q, one, p), _mm512_sub_ps(m, q)};
  (paley_add<GROUP, FIRST + J>(sums[J], terms, one), ...);
}

// The parts of two columns of registers, `half` values apart, on their way in: step by step, while the columns before
// them are computed, and through the last stage of butterflies, which is the one between the two.
struct PaleyNext {
  const float* x;  // of part `part`
  int64_t size, half;
  float (*to)[PALEY_ORDER][16];
  int part;

  inline void step(__m512 one) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + half);
    _mm512_store_ps(to[0][part], _mm512_add_ps(a, b));
    _mm512_store_ps(to[1][part], _mm512_fnmadd_ps(b, one, a));
    x += size;
    ++part;
  }
};

template <int FIRST, int... GROUP>
inline void paley_panel(const float (*in)[16], float* to, int64_t size, __m512 norm, __m512 one, PaleyNext& next,
                        Prefetch& prefetch, RowRange& range, std::integer_sequence<int, GROUP...>) {
  __m512 sums[PALEY_PANEL];
  const auto outputs = std::make_integer_sequence<int, PALEY_PANEL>();
  ((paley_group<GROUP, FIRST>(in, sums, one, outputs), next.step(one), prefetch.step()), ...);
#pragma GCC unroll 14
  for (int j = 0; j < PALEY_PANEL; ++j) {
    const __m512 v = _mm512_mul_ps(sums[j], norm);
    range.add(v);
    _mm512_storeu_ps(to + (FIRST + j) * size, v);
  }
}

// x [28][size] -> factor base_t x, in place; parts of at least 32 values that come without their last stage
void apply_base_paley(float* x, int64_t size, float factor, Prefetch& prefetch, RowRange& range) {
  const __m512 norm = _mm512_set1_ps(factor), one = opaque_one();
  const int64_t half = size / 2;
  const auto groups = std::make_integer_sequence<int, PALEY_GROUPS>();
  alignas(64) float columns[2][2][PALEY_ORDER][16];
  RowRange local = range;
  Prefetch fetch = prefetch;
  PaleyNext next = {x, size, half, columns[0], 0};
  for (int part = 0; part < PALEY_ORDER; ++part) next.step(one);
  for (int64_t i = 0; i < half; i += 16) {
    float (*const now)[PALEY_ORDER][16] = columns[i / 16 % 2];
    next = {x + (i + 16 < half ? i + 16 : i), size, half, columns[1 - i / 16 % 2], 0};  // the last one is not used
    for (int c = 0; c < 2; ++c) {
      float* const to = x + i + c * half;
      paley_panel<0>(now[c], to, size, norm, one, next, fetch, local, groups);
      asm volatile("" ::: "memory");  // the terms are formed again rather than kept, for the same reason
      paley_panel<PALEY_PANEL>(now[c], to, size, norm, one, next, fetch, local, groups);
    }
  }
  range = local;
  prefetch = fetch;
}

}  // namespace
}  // namespace dfq::DFQ_ISA
