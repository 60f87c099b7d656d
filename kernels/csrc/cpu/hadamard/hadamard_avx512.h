// The Hadamard transform of a row in registers. Stages run from the narrowest to the widest, as everywhere.

inline __m512i lanes() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

// Sixteen values of a row of any type, from `at` on, as float; `mask`: which of them there are.
template <int TYPE>
inline __m512 load16(const void* x, int64_t at) {
  if (TYPE == DFQ_FLOAT32) return _mm512_loadu_ps(static_cast<const float*>(x) + at);
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(x) + at));
  if (TYPE == DFQ_FLOAT16) return _mm512_cvtph_ps(v);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

template <int TYPE>
inline __m512 load16(const void* x, int64_t at, __mmask16 mask) {
  if (TYPE == DFQ_FLOAT32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(x) + at);
  const __m256i v = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x) + at);
  if (TYPE == DFQ_FLOAT16) return _mm512_cvtph_ps(v);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

// The same for 32 values: of bfloat16, one permutation puts 16 into the upper halves of 32 bits.
template <int TYPE>
inline void load32(const void* x, int64_t at, __m512& first, __m512& second) {
  if (TYPE == DFQ_BFLOAT16) {
    const __m512i lane = _mm512_slli_epi32(lanes(), 16), both = _mm512_loadu_si512(static_cast<const uint16_t*>(x) + at);
    const __m512i next = _mm512_add_epi32(lane, _mm512_set1_epi32(16 << 16));
    first = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, lane, both));
    second = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, next, both));
  } else {
    first = load16<TYPE>(x, at);
    second = load16<TYPE>(x, at + 16);
  }
}

// Calls function(type tag) for the type of a row.
template <int TYPE>
struct Type {
  static constexpr int value = TYPE;
};

template <typename Function>
inline void with_type(int type, Function function) {
  if (type == DFQ_FLOAT32) return function(Type<DFQ_FLOAT32>());
  if (type == DFQ_BFLOAT16) return function(Type<DFQ_BFLOAT16>());
  function(Type<DFQ_FLOAT16>());
}

inline __mmask16 first_lanes(int64_t count) { return __mmask16(count >= 16 ? 0xffff : (1 << count) - 1); }

// The range of a row, see range.inc. Floats are compared by their bits: of the signed integers the largest is the largest
// value, of the unsigned ones the lowest, and a NaN is beyond both infinities.
struct Ends {
  __m512i low = _mm512_set1_epi32(INT32_MIN), high = _mm512_setzero_si512();  // -0, +0

  void add(__m512 v) {
    low = _mm512_max_epu32(low, _mm512_castps_si512(v));
    high = _mm512_max_epi32(high, _mm512_castps_si512(v));
  }
  void add(const Ends& other) {
    low = _mm512_max_epu32(low, other.low);
    high = _mm512_max_epi32(high, other.high);
  }
  // NaN where any value is NaN or infinite
  void get(float& lowest, float& highest) const {
    const uint32_t bits = _mm512_reduce_max_epu32(low);
    const int32_t top = _mm512_reduce_max_epi32(high);
    std::memcpy(&lowest, &bits, 4);
    std::memcpy(&highest, &top, 4);
    const float bad = (lowest - lowest) + (highest - highest);
    lowest += bad, highest += bad;
  }
};

// Stages 1, 2, 4, 8 inside a register: a swap, and a product with signs, which is exact.
template <int STAGES>
inline __m512 inside(__m512 v) {
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

// Loops over registers are unrolled by hand or by pragma: an array that is indexed at run time lives in memory. Additions
// and multiply-adds have execution units of their own, so every other butterfly is done by the latter, by a factor of one.
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

inline __m512 hidden_one() {  // one, which the compiler must not see through
  __m512 one = _mm512_set1_ps(1.0f);
  asm volatile("" : "+v"(one));
  return one;
}

// COUNT registers `step` values apart -> all stages between them. LAST: times factor, and measured.
template <int COUNT, bool LAST>
inline void finish(__m512* v, float* to, int64_t step, __m512 factor, __m512 one, Ends& ends) {
  butterflies<COUNT>(v, one);
#pragma GCC unroll 16
  for (int i = 0; i < COUNT; ++i) {
    if (LAST) {
      v[i] = _mm512_mul_ps(v[i], factor);
      ends.add(v[i]);
    }
    _mm512_storeu_ps(to + i * step, v[i]);
  }
}

template <int TYPE, int COUNT, bool LAST>
void first_pass(const void* x, int64_t at, int64_t count, float* to, __m512 factor, Ends& ends) {
  Ends local = ends;
  const __m512 one = hidden_one();
  for (int64_t i = 0; i < count; i += 16 * COUNT) {
    __m512 v[COUNT];
    if (COUNT == 1) v[0] = load16<TYPE>(x, at + i);
#pragma GCC unroll 8
    for (int c = 0; c + 1 < COUNT; c += 2) load32<TYPE>(x, at + i + 16 * c, v[c], v[c + 1]);
#pragma GCC unroll 16
    for (int c = 0; c < COUNT; ++c) v[c] = inside<4>(v[c]);
    finish<COUNT, LAST>(v, to + i, 16, factor, one, local);
  }
  ends = local;
}

// Parts narrower than a register
template <int TYPE, int STAGES, bool LAST>
void narrow_pass(const void* x, int64_t at, int64_t count, float* to, __m512 factor, Ends& ends) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = first_lanes(count - i);
    __m512 v = inside<STAGES>(load16<TYPE>(x, at + i, mask));
    if (LAST) {
      v = _mm512_mul_ps(v, factor);
      ends.add(v);
    }
    _mm512_mask_storeu_ps(to + i, mask, v);
  }
}

template <int COUNT, bool LAST>
void wide_pass(float* x, int64_t count, int64_t half, __m512 factor, Ends& ends) {
  Ends local = ends;
  const __m512 one = hidden_one();
  for (int64_t at = 0; at < count; at += COUNT * half) {
    for (int64_t i = at; i < at + half; i += 16) {
      __m512 v[COUNT];
#pragma GCC unroll 16
      for (int c = 0; c < COUNT; ++c) v[c] = _mm512_loadu_ps(x + i + c * half);
      finish<COUNT, LAST>(v, x + i, half, factor, one, local);
    }
  }
  ends = local;
}

// All parts of one block: x of TYPE from `at` on -> to [count].
template <int TYPE, bool LAST>
void sylvester(const void* x, int64_t at, int64_t count, int64_t size, float* to, float norm, Ends& ends) {
  const __m512 factor = _mm512_set1_ps(norm);
  switch (size) {
    case 1: return narrow_pass<TYPE, 0, LAST>(x, at, count, to, factor, ends);
    case 2: return narrow_pass<TYPE, 1, LAST>(x, at, count, to, factor, ends);
    case 4: return narrow_pass<TYPE, 2, LAST>(x, at, count, to, factor, ends);
    case 8: return narrow_pass<TYPE, 3, LAST>(x, at, count, to, factor, ends);
    case 16: return first_pass<TYPE, 1, LAST>(x, at, count, to, factor, ends);
    case 32: return first_pass<TYPE, 2, LAST>(x, at, count, to, factor, ends);
    case 64: return first_pass<TYPE, 4, LAST>(x, at, count, to, factor, ends);
    case 128: return first_pass<TYPE, 8, LAST>(x, at, count, to, factor, ends);
    case 256: return first_pass<TYPE, 16, LAST>(x, at, count, to, factor, ends);
    default: first_pass<TYPE, 16, false>(x, at, count, to, factor, ends);
  }
  for (int64_t half = 256; half < size;) {
    const int64_t left = size / half;
    const bool last = LAST && left <= 16;
    if (left >= 16) (last ? wide_pass<16, true> : wide_pass<16, false>)(to, count, half, factor, ends);
    else if (left == 8) (last ? wide_pass<8, true> : wide_pass<8, false>)(to, count, half, factor, ends);
    else if (left == 4) (last ? wide_pass<4, true> : wide_pass<4, false>)(to, count, half, factor, ends);
    else (last ? wide_pass<2, true> : wide_pass<2, false>)(to, count, half, factor, ends);
    half *= left >= 16 ? 16 : left;
  }
}

// Memory that is needed next, fetched line by line while something else is computed: rows of 28 KB and more are too far
// apart for the processor to foresee. stride 0: nothing is.
struct Ahead {
  const char *row, *codes;
  int64_t stride;  // bytes of a row in a step, of which codes have at most half as many

  void step() {
    _mm_prefetch(row, _MM_HINT_T1);
    _mm_prefetch(codes, _MM_HINT_T1);
    row += stride;
    codes += stride / 2;
  }
};

#include "hadamard/paley_avx512.h"

// A whole transform, prepared once per call.
class Transform {
 public:
  Transform(const float* base_t, int64_t order, int64_t block)
      : base_(base_t), order_(order), block_(block), size_(block / order), norm_(float(1.0 / std::sqrt(double(block)))) {
    signs_ = has_signs(base_t, order);
    paley_ = size_ >= 32 && is_paley(base_t, order);
    if (signs_ && !paley_) find_entries(base_t, order, entries_);
  }

  // one block of x, from value `at` on -> to [block], with block floats of scratch behind `spare`
  void apply(const void* x, int type, int64_t at, float* to, float* spare, Ahead& ahead, Ends& ends) {
    const bool plain = order_ == 1;
    const float factor = plain ? norm_ * base_[0] : norm_;
    with_type(type, [&](auto tag) {
      constexpr int TYPE = decltype(tag)::value;
      const int64_t stages = signs_ && size_ >= 32 ? size_ / 2 : size_;
      (plain ? sylvester<TYPE, true> : sylvester<TYPE, false>)(x, at, block_, stages, to, factor, ends);
    });
    if (paley_) return mix_paley(to, size_, norm_, ahead, ends);
    if (signs_) return size_ >= 32 ? mix_signs<true>(to, ahead, ends) : mix_signs<false>(to, ahead, ends);
    if (!plain) mix(to, spare, ends);
  }

 private:
  // x [order][size] -> base_t x, in place, by the table of signs.inc. Parts of 32 and more come without their last
  // stage: it is done on the way, between the two columns of registers that are taken at a time.
  template <bool TWO>
  void mix_signs(float* x, Ahead& ahead, Ends& ends) {
    const int64_t groups = order_ / 4, size = size_, half = TWO ? size / 2 : 16;
    const __mmask16 mask = first_lanes(size);
    const __m512 norm = _mm512_set1_ps(norm_);
    Ends local = ends;
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
        enter(v, table_ + 16 * group, 0);
        if (TWO) enter(w, table_ + 16 * group, 1);
      }
      const uint16_t* entry = entries_;
      for (int64_t j = 0; j < order_; j += 2, entry += 2 * groups) {
        ahead.step();
        if (TWO) ahead.step();
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
        leave<TWO>(_mm512_mul_ps(a, norm), to, mask, local);
        leave<TWO>(_mm512_mul_ps(c, norm), to + size, mask, local);
        if (!TWO) continue;
        leave<TWO>(_mm512_mul_ps(b, norm), to + half, mask, local);
        leave<TWO>(_mm512_mul_ps(d, norm), to + size + half, mask, local);
      }
    }
    ends = local;
  }

  template <bool FULL>
  static void leave(__m512 v, float* to, __mmask16 mask, Ends& ends) {
    ends.add(v);
    if (FULL) _mm512_storeu_ps(to, v);
    else _mm512_mask_storeu_ps(to, mask, v);
  }

  // the signed sums of four parts -> column c of 16 entries
  static void enter(const __m512* x, float (*t)[2][16], int64_t c) {
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
  void mix(float* x, float* spare, Ends& ends) {
    for (int64_t j = 0; j < order_; ++j) {
      for (int64_t i = 0; i < size_; i += 16) {
        const __mmask16 mask = first_lanes(size_ - i);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t a = 0; a < order_; ++a) {
          const __m512 term = _mm512_maskz_loadu_ps(mask, x + a * size_ + i);
          sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_set1_ps(base_[j * order_ + a]), term));
        }
        sum = _mm512_mul_ps(sum, _mm512_set1_ps(norm_));
        ends.add(sum);
        _mm512_mask_storeu_ps(spare + j * size_ + i, mask, sum);
      }
    }
    std::memcpy(x, spare, size_t(block_) * 4);
  }

  const float* base_;
  int64_t order_, block_, size_;
  float norm_;
  bool signs_, paley_;
  alignas(64) float table_[SIGN_ORDER * 4][2][16];
  uint16_t entries_[SIGN_ORDER * SIGN_ORDER / 4];
};
