// Scales and zero points of a weight in the canonical layout, and its rows as float32.
#pragma once
#include <cstdint>

#include "canonical/canonical_kernels.h"
#include "common/convert.h"
#include "common/integers.h"
#include "common/isa.h"
#include "rows/packing.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int64_t CHUNK = 1024;  // codes that are unpacked at a time

inline float scale_of(const Weight& weight, int64_t row, int64_t group) {
  return load_bf16(weight.scale[row * weight.groups + group]);
}

inline int32_t zero_of(const Weight& weight, int64_t row, int64_t group, int bits) {
  return weight.zero ? int32_t(weight.zero[row * weight.groups + group]) : 1 << (bits - 1);
}

[[maybe_unused]] void dequantize_rows(const Weight& weight, int bits, float* out, int64_t begin, int64_t end) {
  uint8_t codes[CHUNK];
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* packed = weight.packed + row * row_bytes(weight.k, bits);
    for (int64_t group = 0; group < weight.groups; ++group) {
      const int64_t last = minimum(weight.k, (group + 1) * weight.group);
      const float scale = scale_of(weight, row, group);
      const int32_t zero = zero_of(weight, row, group, bits);
      for (int64_t first = group * weight.group; first < last; first += CHUNK) {
        const int64_t count = minimum(CHUNK, last - first);
        unpack_codes(packed, first, count, bits, codes);
        float* to = out + row * weight.k + first;
        for (int64_t j = 0; j < count; ++j) to[j] = float(int32_t(codes[j]) - zero) * scale;
      }
    }
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
