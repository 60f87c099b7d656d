// Sixteen lanes of float32 and what is computed in them: the same bits with every instruction set.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/convert.h"
#include "common/isa.h"
#include "common/limits.h"
#include "common/simd.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr float MINUS_INFINITY = -INFINITY;
constexpr int LANES = 16;  // independent partial results, so that reductions vectorise, in one order everywhere

// Of the polynomial of 2^x on [-1/2, 1/2], the highest power first; the constant term is 1.
constexpr float EXP2_TERMS[6] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f,
                                 6.9314718e-1f};
constexpr float EXP2_LOWEST = -125.0f;  // 2^x is 0 below it

// 2^x for x <= 0. Relative error 2e-7.
inline float exp2_scalar(float x) {
  const float inside = x > EXP2_LOWEST ? x : EXP2_LOWEST;
  const float whole = round_even(inside), f = inside - whole;
  float sum = EXP2_TERMS[0];
  for (int i = 1; i < 6; ++i) sum = sum * f + EXP2_TERMS[i];
  sum = sum * f + 1.0f;
  const float result = bits_to_float(float_to_bits(sum) + (uint32_t(int32_t(whole)) << 23));
  return x > EXP2_LOWEST ? result : 0.0f;
}

// Sum and maximum of LANES partial results, halving: one order for every instruction set.
inline float reduce_sum(const float* lanes) {
  float part[LANES / 2];
  for (int i = 0; i < 8; ++i) part[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; ++i) part[i] += part[i + 4];
  return (part[0] + part[2]) + (part[1] + part[3]);
}

inline float larger(float a, float b) { return a > b ? a : b; }

inline float reduce_max(const float* lanes, float start) {
  float part[LANES / 2];
  for (int i = 0; i < 8; ++i) part[i] = larger(lanes[i], lanes[i + 8]);
  for (int i = 0; i < 4; ++i) part[i] = larger(part[i], part[i + 4]);
  return larger(larger(larger(part[0], part[2]), larger(part[1], part[3])), start);
}

// Sixteen lanes, as the compiler's own vectors: every instruction set has them, some in pieces.
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef int8_t Bytes __attribute__((vector_size(16)));

inline void load_lanes(const void* from, Floats& to) { std::memcpy(&to, from, 64); }
inline void store_lanes(const Floats& from, void* to) { std::memcpy(to, &from, 64); }

// In every lane: a > b ? yes : no. gcc compares 64 bytes number by number where its vectors are shorter.
inline void select_greater(const Floats& a, const Floats& b, const Floats& yes, const Floats& no, Floats& to) {
#if DFQ_HAS_NEON
  float32x4_t left[4], right[4], first[4], second[4];
  std::memcpy(left, &a, 64), std::memcpy(right, &b, 64), std::memcpy(first, &yes, 64), std::memcpy(second, &no, 64);
  for (int i = 0; i < 4; ++i) first[i] = vbslq_f32(vcgtq_f32(left[i], right[i]), first[i], second[i]);
  std::memcpy(&to, first, 64);
#elif DFQ_HAS_AVX2 && !DFQ_HAS_AVX512
  __m256 left[2], right[2], first[2], second[2];
  std::memcpy(left, &a, 64), std::memcpy(right, &b, 64), std::memcpy(first, &yes, 64), std::memcpy(second, &no, 64);
  for (int i = 0; i < 2; ++i) {
    first[i] = _mm256_blendv_ps(second[i], first[i], _mm256_cmp_ps(left[i], right[i], _CMP_GT_OQ));
  }
  std::memcpy(&to, first, 64);
#else
  to = a > b ? yes : no;
#endif
}

// exp2_scalar in every lane
inline void exp2_lanes(const Floats& x, Floats& to) {
  const Floats limit = Floats{} + EXP2_LOWEST;
  Floats inside;
  select_greater(x, limit, x, limit, inside);
  const Floats whole = (inside + ROUND_MAGIC) - ROUND_MAGIC, f = inside - whole;
  Floats sum = f * EXP2_TERMS[0] + EXP2_TERMS[1];
  for (int i = 2; i < 6; ++i) sum = sum * f + EXP2_TERMS[i];
  sum = sum * f + 1.0f;
  const Ints bits = Ints(sum) + (__builtin_convertvector(whole, Ints) << 23);
  select_greater(x, limit, Floats(bits), Floats{}, to);
}

inline float reduce_sum_lanes(const Floats& v) {
  alignas(64) float lanes[LANES];
  store_lanes(v, lanes);
  return reduce_sum(lanes);
}

inline float reduce_max_lanes(const Floats& v, float start) {
  alignas(64) float lanes[LANES];
  store_lanes(v, lanes);
  return reduce_max(lanes, start);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
