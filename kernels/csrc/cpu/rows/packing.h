// Packed codes: a little-endian bit string per row.
#pragma once
#include <cstdint>

#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

inline int64_t row_bytes(int64_t k, int bits) { return (k * bits + 7) / 8; }

[[maybe_unused]] void pack_codes(const uint8_t* codes, int64_t k, int bits, uint8_t* packed) {
  if (bits == 4) {
    for (int64_t j = 0; j < k / 2; ++j) packed[j] = uint8_t((codes[2 * j] & 15) | (codes[2 * j + 1] << 4));
    if (k % 2) packed[k / 2] = codes[k - 1] & 15;
    return;
  }
  const uint32_t mask = (1u << bits) - 1;
  uint32_t pending = 0;
  int filled = 0;
  for (int64_t j = 0; j < k; ++j) {
    pending |= (codes[j] & mask) << filled;
    for (filled += bits; filled >= 8; filled -= 8, pending >>= 8) *packed++ = uint8_t(pending);
  }
  if (filled) *packed = uint8_t(pending);
}

// Codes first .. first + count - 1 of a packed row.
[[maybe_unused]] void unpack_codes(const uint8_t* packed, int64_t first, int64_t count, int bits, uint8_t* codes) {
  if (bits == 4) {
    if (first % 2 && count > 0) {
      *codes++ = packed[first / 2] >> 4;
      ++first, --count;
    }
    const uint8_t* in = packed + first / 2;
    for (int64_t j = 0; j < count / 2; ++j) {
      codes[2 * j] = in[j] & 15;
      codes[2 * j + 1] = in[j] >> 4;
    }
    if (count % 2) codes[count - 1] = in[count / 2] & 15;
    return;
  }
  const uint32_t mask = (1u << bits) - 1;
  const uint8_t* in = packed + first * bits / 8;
  uint32_t pending = 0;
  int filled = 0;
  if (first * bits % 8) {
    const int used = int(first * bits % 8);
    pending = uint32_t(*in++) >> used;
    filled = 8 - used;
  }
  for (int64_t j = 0; j < count; ++j) {
    for (; filled < bits; filled += 8) pending |= uint32_t(*in++) << filled;
    codes[j] = uint8_t(pending & mask);
    pending >>= bits;
    filled -= bits;
  }
}

[[maybe_unused]] void pack_rows(const uint8_t* codes, int64_t k, int bits, uint8_t* packed, int64_t begin,
                                int64_t end) {
  for (int64_t row = begin; row < end; ++row) pack_codes(codes + row * k, k, bits, packed + row * row_bytes(k, bits));
}

[[maybe_unused]] void unpack_rows(const uint8_t* packed, int64_t k, int bits, uint8_t* codes, int64_t begin,
                                  int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    unpack_codes(packed + row * row_bytes(k, bits), 0, k, bits, codes + row * k);
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
