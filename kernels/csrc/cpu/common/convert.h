// Number formats: bfloat16 and float16 to float32 and back, single values and rows of them.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/integers.h"
#include "common/isa.h"
#include "common/limits.h"
#include "common/simd.h"
#include "dfq_abi.h"

namespace dfq::DFQ_ISA {
namespace {

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float load_bf16(uint16_t value) { return bits_to_float(uint32_t(value) << 16); }

inline uint16_t store_bf16(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;  // half to even
  return uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40 : rounded);
}

// Nearest integer, half to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no bit below one.
inline float round_even(float x) { return (x + ROUND_MAGIC) - ROUND_MAGIC; }

#if DFQ_HAS_NEON  // each is one instruction
inline float load_f16(uint16_t half) {
  __fp16 value;
  std::memcpy(&value, &half, 2);
  return float(value);
}

inline uint16_t store_f16(float value) {
  const __fp16 rounded = __fp16(value);
  uint16_t half;
  std::memcpy(&half, &rounded, 2);
  return half;
}
#else
inline float load_f16(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
  // move the exponent by multiplying with 2^112: exact, subnormals included
  float value = bits_to_float(rest << 13) * bits_to_float(0x77800000u);
  if (rest >= 0x7c00) value = bits_to_float(0x7f800000u | (rest << 13));
  return bits_to_float(sign | float_to_bits(value));
}

inline uint16_t store_f16(float value) {
  const uint32_t bits = float_to_bits(value), sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffffu;
  if (size >= 0x47800000u) return uint16_t(sign | (size > 0x7f800000u ? 0x7e00 : 0x7c00));  // NaN, Inf, too large
  if (size < 0x38800000u) {  // subnormal half: count units of 2^-24
    return uint16_t(sign | uint32_t(round_even(bits_to_float(size) * 16777216.0f)));
  }
  return uint16_t(sign | ((size - 0x38000000u + 0xfffu + ((size >> 13) & 1)) >> 13));
}
#endif

// Rows of float16.
#if DFQ_HAS_AVX512
[[maybe_unused]] void half_to_float(const uint16_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = __mmask16((1u << minimum(16, count - i)) - 1);
    _mm512_mask_storeu_ps(out + i, mask, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, in + i)));
  }
}

[[maybe_unused]] void float_to_half(const float* in, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = __mmask16((1u << minimum(16, count - i)) - 1);
    const __m512 v = _mm512_maskz_loadu_ps(mask, in + i);
    _mm256_mask_storeu_epi16(out + i, mask, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
}
#elif DFQ_HAS_AVX2
[[maybe_unused]] void half_to_float(const uint16_t* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  }
  for (; i < count; ++i) out[i] = load_f16(in[i]);
}

[[maybe_unused]] void float_to_half(const float* in, int64_t count, uint16_t* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), half);
  }
  for (; i < count; ++i) out[i] = store_f16(in[i]);
}
#elif DFQ_HAS_NEON
[[maybe_unused]] void half_to_float(const uint16_t* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(in + i))));
  for (; i < count; ++i) out[i] = load_f16(in[i]);
}

[[maybe_unused]] void float_to_half(const float* in, int64_t count, uint16_t* out) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(in + i))));
  for (; i < count; ++i) out[i] = store_f16(in[i]);
}
#else
[[maybe_unused]] void half_to_float(const uint16_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = load_f16(in[i]);
}

[[maybe_unused]] void float_to_half(const float* in, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = store_f16(in[i]);
}
#endif

inline int64_t size_of(int type) { return type == DFQ_FLOAT32 ? 4 : 2; }

// `count` values of x from element `at` on
[[maybe_unused]] void load_floats(const void* x, int type, int64_t at, int64_t count, float* out) {
  const char* from = static_cast<const char*>(x) + at * size_of(type);
  if (type == DFQ_FLOAT32) {
    std::memcpy(out, from, size_t(count) * 4);
  } else if (type == DFQ_BFLOAT16) {
    const uint16_t* in = reinterpret_cast<const uint16_t*>(from);
    for (int64_t i = 0; i < count; ++i) out[i] = load_bf16(in[i]);
  } else {
    half_to_float(reinterpret_cast<const uint16_t*>(from), count, out);
  }
}

[[maybe_unused]] void store_floats(const float* in, int64_t count, int type, void* x, int64_t at) {
  char* to = static_cast<char*>(x) + at * size_of(type);
  if (type == DFQ_FLOAT32) {
    std::memcpy(to, in, size_t(count) * 4);
  } else if (type == DFQ_BFLOAT16) {
    uint16_t* out = reinterpret_cast<uint16_t*>(to);
    for (int64_t i = 0; i < count; ++i) out[i] = store_bf16(in[i]);
  } else {
    float_to_half(in, count, reinterpret_cast<uint16_t*>(to));
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
