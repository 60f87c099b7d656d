// The loops behind block_kernels.h, for the compiler to vectorise.
#pragma once
#include <cmath>
#include <cstdint>

#include "common/convert.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/limits.h"
#include "dfq_abi.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int64_t CHUNK = 512;  // values in flight; heads are at most this wide
constexpr int64_t LANES = 16;    // independent partial sums
static_assert(CHUNK >= MAX_HEAD_DIM, "rope takes a head at once");

// To `type` and back: where a torch module would have stored a tensor.
void round_to_dtype(float* x, int64_t count, int type) {
  if (type == DFQ_FLOAT32) return;
  if (type == DFQ_BFLOAT16) {
    for (int64_t i = 0; i < count; ++i) x[i] = load_bf16(store_bf16(x[i]));
    return;
  }
  uint16_t half[CHUNK];
  float_to_half(x, count, half);
  half_to_float(half, count, x);
}

// exp(x) for x <= 0 and moderate positive x, to about 1 unit in the last place; 0 below -87.
inline float exp_scalar(float x) {
  x = x > -87.0f ? x : -87.0f;
  x = x < 88.0f ? x : 88.0f;
  const float n = round_even(x * LOG2_E);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return bits_to_float(float_to_bits(p) + (uint32_t(int32_t(n)) << 23));
}

void rmsnorm(const void* x, int type, int64_t count, const float* weight, float eps, void* y) {
  float values[CHUNK], sums[LANES] = {};
  for (int64_t at = 0; at < count; at += CHUNK) {
    const int64_t width = minimum(CHUNK, count - at);
    load_floats(x, type, at, width, values);
    for (int64_t i = width; i % LANES; ++i) values[i] = 0.0f;
    for (int64_t i = 0; i < width; i += LANES) {
      for (int64_t lane = 0; lane < LANES; ++lane) sums[lane] += values[i + lane] * values[i + lane];
    }
  }
  double total = 0.0;
  for (int64_t lane = 0; lane < LANES; ++lane) total += double(sums[lane]);
  const float factor = 1.0f / std::sqrt(float(total / double(count)) + eps);
  for (int64_t at = 0; at < count; at += CHUNK) {
    const int64_t width = minimum(CHUNK, count - at);
    load_floats(x, type, at, width, values);
    for (int64_t i = 0; i < width; ++i) values[i] *= factor;
    round_to_dtype(values, width, type);
    for (int64_t i = 0; i < width; ++i) values[i] *= weight[at + i];
    store_floats(values, width, type, y, at);
  }
}

void add(void* x, const void* y, int type, int64_t from, int64_t count) {
  float left[CHUNK], right[CHUNK];
  for (int64_t at = 0; at < count; at += CHUNK) {
    const int64_t width = minimum(CHUNK, count - at);
    load_floats(x, type, from + at, width, left);
    load_floats(y, type, from + at, width, right);
    for (int64_t i = 0; i < width; ++i) left[i] += right[i];
    store_floats(left, width, type, x, from + at);
  }
}

void rope(void* x, int type, int64_t at, int64_t heads, int64_t dim, const float* cos, const float* sin) {
  float values[CHUNK], cos_part[CHUNK], sin_part[CHUNK];
  const int64_t half = dim / 2;
  for (int64_t head = 0; head < heads; ++head, at += dim) {
    load_floats(x, type, at, dim, values);
    for (int64_t i = 0; i < dim; ++i) cos_part[i] = values[i] * cos[i];
    for (int64_t i = 0; i < half; ++i) sin_part[i] = -values[half + i] * sin[i];
    for (int64_t i = half; i < dim; ++i) sin_part[i] = values[i - half] * sin[i];
    round_to_dtype(cos_part, dim, type);
    round_to_dtype(sin_part, dim, type);
    for (int64_t i = 0; i < dim; ++i) cos_part[i] += sin_part[i];
    store_floats(cos_part, dim, type, x, at);
  }
}

void silu_mul(const void* gate, const void* up, int type, int64_t from, int64_t count, void* out) {
  float left[CHUNK], right[CHUNK];
  for (int64_t at = 0; at < count; at += CHUNK) {
    const int64_t width = minimum(CHUNK, count - at);
    load_floats(gate, type, from + at, width, left);
    load_floats(up, type, from + at, width, right);
    for (int64_t i = 0; i < width; ++i) left[i] = left[i] / (1.0f + exp_scalar(-left[i]));
    round_to_dtype(left, width, type);
    for (int64_t i = 0; i < width; ++i) left[i] *= right[i];
    store_floats(left, width, type, out, from + at);
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
