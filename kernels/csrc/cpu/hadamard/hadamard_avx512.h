// Hadamard transforms of rows with AVX-512: prepared once per call, a row stays in registers and in cache.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/convert.h"
#include "common/isa.h"
#include "common/simd_avx512.h"
#include "dfq_abi.h"
#include "hadamard/butterflies_avx512.h"
#include "hadamard/paley_avx512.h"
#include "hadamard/signs.h"
#include "rows/load_avx512.h"

namespace dfq::DFQ_ISA {
namespace {

// A whole transform, prepared once per call.
class HadamardTransform {
 public:
  HadamardTransform(const float* base_t, int64_t order, int64_t block)
      : base_(base_t),
        order_(order),
        block_(block),
        size_(block / order),
        norm_(float(1.0 / std::sqrt(double(block)))) {
    signs_ = has_signs(base_t, order);
    paley_ = size_ >= 32 && is_paley(base_t, order);
    if (signs_ && !paley_) find_entries(base_t, order, entries_);
  }

  // one block of x, from value `at` on -> to [block], with block floats of scratch behind `spare`
  void apply(const void* x, int type, int64_t at, float* to, float* scratch, Prefetch& prefetch, RowRange& range) {
    const bool plain = order_ == 1;
    const float factor = plain ? norm_ * base_[0] : norm_;
    with_type(type, [&](auto tag) {
      constexpr int TYPE = decltype(tag)::value;
      const int64_t stages = signs_ && size_ >= 32 ? size_ / 2 : size_;
      (plain ? sylvester<TYPE, true> : sylvester<TYPE, false>)(x, at, block_, stages, to, factor, range);
    });
    if (paley_) return apply_base_paley(to, size_, norm_, prefetch, range);
    if (signs_)
      return size_ >= 32 ? apply_base_signs<true>(to, prefetch, range) : apply_base_signs<false>(to, prefetch, range);
    if (!plain) apply_base(to, scratch, range);
  }

 private:
  // x [order][size] -> base_t x, in place, by the table of signs.h. Parts of 32 and more come without their last
  // stage: it is done on the way, between the two columns of registers that are taken at a time.
  template <bool TWO>
  void apply_base_signs(float* x, Prefetch& prefetch, RowRange& range) {
    const int64_t groups = order_ / 4, size = size_, half = TWO ? size / 2 : 16;
    const __mmask16 mask = first_lanes(size);
    const __m512 norm = _mm512_set1_ps(norm_);
    RowRange local = range;
    for (int64_t i = 0; i < half; i += 16) {
      for (int64_t group = 0; group < groups; ++group) {
        const float* in = x + 4 * group * size + i;
        __m512 v[4], w[4];
#pragma GCC unroll 4
        for (int a = 0; a < 4; ++a) {
          v[a] = w[a] = TWO ? _mm512_loadu_ps(in + a * size) : _mm512_maskz_loadu_ps(mask, in + a * size);
          if (!TWO) continue;
          const __m512 other = _mm512_loadu_ps(in + a * size + half);
          v[a] = _mm512_add_ps(w[a], other);
          w[a] = _mm512_sub_ps(w[a], other);
        }
        fill_sign_table(v, table_ + 16 * group, 0);
        if (TWO) fill_sign_table(w, table_ + 16 * group, 1);
      }
      const uint16_t* entry = entries_;
      for (int64_t j = 0; j < order_; j += 2, entry += 2 * groups) {
        prefetch.step();
        if (TWO) prefetch.step();
        __m512 a = _mm512_load_ps(table_[entry[0]][0]), b = _mm512_load_ps(table_[entry[0]][1]);
        __m512 c = _mm512_load_ps(table_[entry[groups]][0]), d = _mm512_load_ps(table_[entry[groups]][1]);
        for (int64_t group = 1; group < groups; ++group) {
          const float (*const first)[16] = table_[entry[group]], (*const second)[16] = table_[entry[groups + group]];
          a = _mm512_add_ps(a, _mm512_load_ps(first[0]));
          b = _mm512_add_ps(b, _mm512_load_ps(first[1]));
          c = _mm512_add_ps(c, _mm512_load_ps(second[0]));
          d = _mm512_add_ps(d, _mm512_load_ps(second[1]));
        }
        float* const to = x + j * size + i;
        store_and_measure<TWO>(_mm512_mul_ps(a, norm), to, mask, local);
        store_and_measure<TWO>(_mm512_mul_ps(c, norm), to + size, mask, local);
        if (!TWO) continue;
        store_and_measure<TWO>(_mm512_mul_ps(b, norm), to + half, mask, local);
        store_and_measure<TWO>(_mm512_mul_ps(d, norm), to + size + half, mask, local);
      }
    }
    range = local;
  }

  template <bool FULL>
  static void store_and_measure(__m512 v, float* to, __mmask16 mask, RowRange& range) {
    range.add(v);
    if (FULL) _mm512_storeu_ps(to, v);
    else _mm512_mask_storeu_ps(to, mask, v);
  }

  // the signed sums of four parts -> column c of 16 entries
  static void fill_sign_table(const __m512* x, float (*t)[2][16], int64_t c) {
    const __m512 p = _mm512_add_ps(x[0], x[1]), m = _mm512_sub_ps(x[0], x[1]);
    const __m512 q = _mm512_add_ps(x[2], x[3]), r = _mm512_sub_ps(x[2], x[3]);
    const auto put = [&](int code, __m512 v) {
      _mm512_store_ps(t[code][c], v);
      _mm512_store_ps(t[code ^ 15][c], _mm512_xor_ps(v, _mm512_set1_ps(-0.0f)));
    };
    put(0, _mm512_add_ps(p, q));
    put(2, _mm512_add_ps(m, q));
    put(8, _mm512_add_ps(p, r));
    put(10, _mm512_add_ps(m, r));
    put(4, _mm512_sub_ps(p, r));
    put(6, _mm512_sub_ps(m, r));
    put(12, _mm512_sub_ps(p, q));
    put(14, _mm512_sub_ps(m, q));
  }

  // any base: the terms in order
  void apply_base(float* x, float* scratch, RowRange& range) {
    for (int64_t j = 0; j < order_; ++j) {
      for (int64_t i = 0; i < size_; i += 16) {
        const __mmask16 mask = first_lanes(size_ - i);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t a = 0; a < order_; ++a) {
          const __m512 term = _mm512_maskz_loadu_ps(mask, x + a * size_ + i);
          sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_set1_ps(base_[j * order_ + a]), term));
        }
        sum = _mm512_mul_ps(sum, _mm512_set1_ps(norm_));
        range.add(sum);
        _mm512_mask_storeu_ps(scratch + j * size_ + i, mask, sum);
      }
    }
    std::memcpy(x, scratch, size_t(block_) * 4);
  }

  const float* base_;
  int64_t order_, block_, size_;
  float norm_;
  bool signs_, paley_;
  alignas(64) float table_[SIGN_ORDER * 4][2][16];
  uint16_t entries_[SIGN_ORDER * SIGN_ORDER / 4];
};

void hadamard_rows(const void* x, int type, int64_t block, const float* base_t, int64_t order, void* out,
                          float* scratch, int64_t begin, int64_t end) {
  HadamardTransform transform(base_t, order, block);
  RowRange range;
  const char* const nowhere = reinterpret_cast<const char*>(scratch);
  Prefetch prefetch = {nowhere, nowhere, 0};
  for (int64_t row = begin; row < end; ++row) {
    transform.apply(x, type, row * block, scratch, scratch + block, prefetch, range);
    store_floats(scratch, block, type, out, row * block);
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
