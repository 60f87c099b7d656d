// Dynamic quantization of rows: of activations (one int8 per value), of keys and values (packed, with float16 scales).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/convert.h"
#include "common/integers.h"
#include "common/isa.h"
#include "rows/codes.h"
#include "rows/packing.h"
#include "rows/range.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int64_t CHUNK = 1024;  // values of a row that are converted and kept in cache; fills whole bytes when packed

// The ends in low[0] and high[0]; NaN in both for a row that holds NaN or Inf.
void finish(Range& range) {
  for (int lane = 1; lane < LANES; ++lane) {
    range.low[0] = range.low[lane] < range.low[0] ? range.low[lane] : range.low[0];
    range.high[0] = range.high[lane] > range.high[0] ? range.high[lane] : range.high[0];
    range.bad[0] += range.bad[lane];
  }
  range.low[0] += range.bad[0];
  range.high[0] += range.bad[0];
}

inline float peak_of(const Range& range) {
  return range.high[0] > -range.low[0] ? range.high[0] : -range.low[0];
}

inline float zero_point(float low, float scale, float top) {
  float zero = -low / scale;
  zero = zero < top ? zero : top;  // already true but for the rounding of tiny or clipped scales
  return round_even(zero);
}

void quantize_rows(const void* x, int type, int64_t k, int bits, bool symmetric, float clip, int8_t* codes,
                   float* scale, int32_t* zero, int64_t begin, int64_t end) {
  const float half = float(1 << (bits - 1)), top = 2.0f * half - 1.0f;
  float buffer[CHUNK];
  for (int64_t row = begin; row < end; ++row) {
    Range range;
    start(range);
    for (int64_t at = 0; at < k; at += CHUNK) {
      const int64_t count = minimum(CHUNK, k - at);
      load_floats(x, type, row * k + at, count, buffer);
      extend(range, buffer, count);
    }
    finish(range);
    const float low = range.low[0] * clip, high = range.high[0] * clip;
    float step = symmetric ? peak_of(range) * clip / (half - 1.0f) : (high - low) / top;
    int8_t* to = codes + row * k;
    if (!(step < INFINITY)) {  // NaN or Inf in the row (or a range beyond float): visible in every product
      scale[row] = NAN;
      zero[row] = 0;
      std::memset(to, 0, size_t(k));
      continue;
    }
    if (step == 0.0f) step = 1.0f;
    const float shift = symmetric ? 0.0f : zero_point(low, step, top) - half;
    scale[row] = step;
    zero[row] = int32_t(shift);
    for (int64_t at = 0; at < k; at += CHUNK) {
      const int64_t count = minimum(CHUNK, k - at);
      if (k > CHUNK) load_floats(x, type, row * k + at, count, buffer);
      write_codes(buffer, count, step, shift, -half, half - 1.0f, reinterpret_cast<uint8_t*>(to + at));
    }
  }
}

void kv_quantize_rows(const void* x, int type, int64_t width, int bits, bool symmetric, float clip, uint8_t* packed,
                      uint16_t* scale, uint8_t* zero, int64_t begin, int64_t end) {
  const float half = float(1 << (bits - 1)), top = 2.0f * half - 1.0f;
  const int64_t bytes = row_bytes(width, bits);
  float buffer[CHUNK];
  uint8_t codes[CHUNK];
  for (int64_t row = begin; row < end; ++row) {
    Range range;
    start(range);
    for (int64_t at = 0; at < width; at += CHUNK) {
      const int64_t count = minimum(CHUNK, width - at);
      load_floats(x, type, row * width + at, count, buffer);
      extend(range, buffer, count);
    }
    finish(range);
    const float low = range.low[0] * clip, high = range.high[0] * clip;
    float step = symmetric ? peak_of(range) * clip / (half - 1.0f) : (high - low) / top;
    uint8_t* to = packed + row * bytes;
    if (!(step < INFINITY)) {
      scale[row] = 0x7e00;  // NaN
      zero[row] = uint8_t(half);
      std::memset(to, 0, size_t(bytes));
      continue;
    }
    step = step < 65504.0f ? step : 65504.0f;  // the largest float16
    uint16_t stored = store_f16(step);
    if ((stored & 0x7fff) == 0) stored = 0x3c00;  // one
    step = load_f16(stored);
    const float shift = symmetric ? half : zero_point(low, step, top);
    scale[row] = stored;
    zero[row] = uint8_t(shift);
    for (int64_t at = 0; at < width; at += CHUNK) {  // CHUNK codes fill whole bytes
      const int64_t count = minimum(CHUNK, width - at);
      if (width > CHUNK) load_floats(x, type, row * width + at, count, buffer);
      write_codes(buffer, count, step, shift, 0.0f, top, codes);
      pack_codes(codes, count, bits, to + at * bits / 8);
    }
  }
}

void kv_dequantize_rows(const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t width, int bits,
                        int type, void* out, int64_t begin, int64_t end) {
  float values[CHUNK];
  uint8_t codes[CHUNK];
  for (int64_t row = begin; row < end; ++row) {
    const float step = load_f16(scale[row]);
    const int32_t shift = zero ? int32_t(zero[row]) : 1 << (bits - 1);
    for (int64_t at = 0; at < width; at += CHUNK) {
      const int64_t count = minimum(CHUNK, width - at);
      unpack_codes(packed + row * row_bytes(width, bits), at, count, bits, codes);
      for (int64_t i = 0; i < count; ++i) values[i] = float(int32_t(codes[i]) - shift) * step;
      store_floats(values, count, type, out, row * width + at);
    }
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
