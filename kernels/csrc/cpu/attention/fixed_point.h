// Queries and weights of values in fixed point: digits of one byte, and where they stand beside packed codes.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "attention/attention_kernels.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/lanes.h"
#include "common/limits.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int64_t TILE = ATTENTION_TILE, BLOCK = ATTENTION_BLOCK;
constexpr float MIN_WEIGHT = 1e-30f;  // weights below it are zero

// Rows are read 16 bytes at a time. Other widths than 4 bits are multiplied as bytes.
int64_t padded_width(int64_t dim, int bits) { return bits == 4 ? ceil_div(dim, 32) * 32 : ceil_div(dim, 16) * 16; }

// Where value d of a row stands among the digits of a query, and among the sums of values.
inline int64_t key_slot(int64_t d, int bits) { return bits == 4 ? d / 8 * 8 + d % 2 * 4 + d % 8 / 2 : d; }
inline int64_t value_slot(int64_t d, int bits) { return bits == 4 ? d / 32 * 32 + d % 2 * 16 + d % 32 / 2 : d; }

// The largest number of the fixed point: the top byte stays below 128, the number below 2^22 (see round_even).
inline float largest_fixed(int parts) { return parts == 2 ? 127.0f * 256.0f : 63.0f * 65536.0f; }

// Bytes of round(x), lowest first: x = sum of 256^part * to[part], for |x| <= most(parts).
inline void split_bytes(const Floats& x, int parts, Ints* to) {
  Ints code = __builtin_convertvector((x + ROUND_MAGIC) - ROUND_MAGIC, Ints);
  for (int part = 0; part < parts; ++part) {
    const Ints rest = (code + 128) >> 8;
    to[part] = code - (rest << 8);
    code = rest;
  }
}

void quantize_queries(const float* x, int64_t count, int64_t dim, int bits, int parts, float factor, int8_t* digits,
                     float* steps, float* sums) {
  const int64_t width = padded_width(dim, bits);
  for (int64_t line = 0; line < count; ++line, x += dim, digits += parts * width) {
    float peak = 0.0f, bad = 0.0f;
    for (int64_t d = 0; d < dim; ++d) {
      const float size = x[d] < 0.0f ? -x[d] : x[d];
      peak = size > peak ? size : peak;
      bad += x[d] * 0.0f;
    }
    std::memset(digits, 0, size_t(parts * width));
    for (int part = 0; part < parts; ++part) sums[line * parts + part] = 0.0f;
    steps[line] =
        peak / largest_fixed(parts) * factor + bad;  // NaN when the row holds NaN or Inf: then so is its output
    if (!(peak > MIN_WEIGHT) || bad != 0.0f) continue;
    const float inverse = largest_fixed(parts) / peak;
    for (int64_t at = 0; at < dim; at += LANES) {
      Floats values = {};
      Ints bytes[ATTENTION_PARTS];
      const int64_t filled = minimum(LANES, dim - at);
      std::memcpy(&values, x + at, size_t(filled) * 4);
      split_bytes(values * inverse, parts, bytes);
      for (int part = 0; part < parts; ++part) {
        for (int64_t i = 0; i < filled; ++i) {
          digits[part * width + key_slot(at + i, bits)] = int8_t(bytes[part][i]);
          sums[line * parts + part] += float(bytes[part][i]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
