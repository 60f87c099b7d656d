// Work on rows: dynamic quantization of activations and of keys and values, and the Hadamard transform.

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

void quantize_rows(const void* x, int type, int64_t k, int bits, bool symmetric, float clip, int8_t* codes, float* scale,
                   int32_t* zero, int64_t begin, int64_t end) {
  const float half = float(1 << (bits - 1)), top = 2.0f * half - 1.0f;
  float buffer[CHUNK];
  for (int64_t row = begin; row < end; ++row) {
    Range range;
    start(range);
    for (int64_t at = 0; at < k; at += CHUNK) {
      const int64_t count = least(CHUNK, k - at);
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
      const int64_t count = least(CHUNK, k - at);
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
      const int64_t count = least(CHUNK, width - at);
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
      const int64_t count = least(CHUNK, width - at);
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
      const int64_t count = least(CHUNK, width - at);
      unpack_codes(packed + row * row_bytes(width, bits), at, count, bits, codes);
      for (int64_t i = 0; i < count; ++i) values[i] = float(int32_t(codes[i]) - shift) * step;
      store_floats(values, count, type, out, row * width + at);
    }
  }
}

// In-place fast Walsh-Hadamard transform of `size` (a power of two) floats from stage `half` on, two stages a pass.
void butterflies(float* x, int64_t size, int64_t half) {
  for (; 4 * half <= size; half *= 4) {
    for (int64_t at = 0; at < size; at += 4 * half) {
      float *p0 = x + at, *p1 = p0 + half, *p2 = p1 + half, *p3 = p2 + half;
#pragma GCC ivdep
      for (int64_t i = 0; i < half; ++i) {
        const float a = p0[i] + p1[i], b = p0[i] - p1[i], c = p2[i] + p3[i], d = p2[i] - p3[i];
        p0[i] = a + c;
        p1[i] = b + d;
        p2[i] = a - c;
        p3[i] = b - d;
      }
    }
  }
  if (half < size) {
    float *p0 = x, *p1 = x + half;
#pragma GCC ivdep
    for (int64_t i = 0; i < half; ++i) {
      const float a = p0[i], b = p1[i];
      p0[i] = a + b;
      p1[i] = a - b;
    }
  }
}

#include "hadamard/signs.h"

// to[j, i] = norm * sum_a base_t[j, a] from[a, i], LANES columns i at a time. Signs: sums of four terms are formed once
// and looked up, see signs.inc. Otherwise the terms are added in order.
void mix_parts(const float* from, const float* base_t, int64_t order, int64_t size, float norm, float* to) {
  const int64_t groups = order / 4;
  const bool signs = has_signs(base_t, order);
  uint16_t entries[SIGN_ORDER * SIGN_ORDER / 4];
  if (signs) find_entries(base_t, order, entries);
  alignas(64) float table[SIGN_ORDER * 4][LANES];
  for (int64_t i = 0; i < size; i += LANES) {
    const int64_t width = least(LANES, size - i);
    for (int64_t group = 0; signs && group < groups; ++group) {
      alignas(64) float in[4][LANES] = {};
      for (int64_t a = 0; a < 4; ++a) {
        const float* values = from + (4 * group + a) * size + i;
        for (int64_t lane = 0; lane < width; ++lane) in[a][lane] = values[lane];
      }
      float (*t)[LANES] = table + 16 * group;
      for (int lane = 0; lane < LANES; ++lane) {
        const float p = in[0][lane] + in[1][lane], m = in[0][lane] - in[1][lane];
        const float q = in[2][lane] + in[3][lane], r = in[2][lane] - in[3][lane];
        t[0][lane] = p + q, t[2][lane] = m + q, t[8][lane] = p + r, t[10][lane] = m + r;
        t[4][lane] = p - r, t[6][lane] = m - r, t[12][lane] = p - q, t[14][lane] = m - q;
      }
      for (int code = 1; code < 16; code += 2) {  // the opposite signs
        for (int lane = 0; lane < LANES; ++lane) t[code][lane] = -t[code ^ 15][lane];
      }
    }
    for (int64_t j = 0; j < order; ++j) {
      alignas(64) float sums[LANES] = {};
      if (signs) {
        const uint16_t* entry = entries + j * groups;
        std::memcpy(sums, table[entry[0]], sizeof sums);
        for (int64_t group = 1; group < groups; ++group) {
          const float* add = table[entry[group]];
          for (int lane = 0; lane < LANES; ++lane) sums[lane] += add[lane];
        }
      } else {
        for (int64_t a = 0; a < order; ++a) {
          for (int64_t lane = 0; lane < width; ++lane) sums[lane] += base_t[j * order + a] * from[a * size + i + lane];
        }
      }
      for (int64_t lane = 0; lane < width; ++lane) to[j * size + i + lane] = sums[lane] * norm;
    }
  }
}

// rows of `block` values; transform(x, size): the power-of-two part, in place
void hadamard_rows(const void* x, int type, int64_t block, const float* base_t, int64_t order, void* out, float* scratch,
                   int64_t begin, int64_t end) {
  const int64_t size = block / order;
  const float norm = float(1.0 / std::sqrt(double(block)));
  for (int64_t row = begin; row < end; ++row) {
    load_floats(x, type, row * block, block, scratch);
    for (int64_t part = 0; part < order; ++part) transform(scratch + part * size, size);
    float* result = scratch;
    if (order > 1) {
      result = scratch + block;
      mix_parts(scratch, base_t, order, size, norm, result);
    } else {
      const float factor = norm * base_t[0];
      for (int64_t i = 0; i < block; ++i) result[i] *= factor;
    }
    store_floats(result, block, type, out, row * block);
  }
}
