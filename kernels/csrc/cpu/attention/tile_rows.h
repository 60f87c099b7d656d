// Rows of keys or values of one tile, as 4-bit or 8-bit codes.
#pragma once
#include <cstdint>
#include <cstring>

#include "attention/attention_kernels.h"
#include "common/isa.h"
#include "common/kernels.h"

namespace dfq::DFQ_ISA {
namespace {

struct Rows {  // of a tile, as 4-bit or 8-bit codes
  const uint8_t* at;
  int64_t stride, bytes, count;
  int bits;
};

// The rows of a tile; widths other than 4 and 8 bits are spread to bytes first.
Rows tile_rows(const StoredRows& rows, int64_t index, int64_t stride, int64_t count, int bits, uint8_t* bytes) {
  const uint8_t* at = rows.packed + index * rows.bytes;
  if (bits == 4 || bits == 8) return {at, stride * rows.bytes, rows.bytes, count, bits};
  for (int64_t t = 0; t < count; ++t) {
    kernels().rows.unpack_rows(at + t * stride * rows.bytes, rows.dim, bits, bytes + t * rows.width, 0, 1);
    std::memset(bytes + t * rows.width + rows.dim, 0, size_t(rows.width - rows.dim));
  }
  return {bytes, rows.width, rows.width, count, 8};
}

}  // namespace
}  // namespace dfq::DFQ_ISA
