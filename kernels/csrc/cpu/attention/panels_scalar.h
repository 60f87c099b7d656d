// Keys and values of a tile, unpacked in plain C++, and their integer products with digits:
//   unpack_keys   rows -> panels [position / 16][quad of the row][16 positions][4 codes]
//   unpack_values rows -> panels [16 values of the row][position / 4][16 values][4 positions]
//   multiply      out[line][16 p + i] = sum over quads j of a[line][4 j .. 4 j + 3] . panels[p][j][i][4]
// With 4 bits a 32-bit word of a row holds 8 codes; masked, its even codes are one quad and its odd codes the next.
#pragma once
#include <cstdint>
#include <cstring>

#include "attention/attention_kernels.h"
#include "attention/fixed_point.h"
#include "attention/tile_rows.h"
#include "common/integers.h"
#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

inline uint8_t code_at(const Rows& rows, int64_t position, int64_t byte, int high) {
  const uint8_t* row = rows.at + minimum(position, rows.count - 1) * rows.stride;
  const uint8_t value = byte < rows.bytes ? row[byte] : 0;
  return rows.bits == 8 ? value : high ? value >> 4 : value & 15;
}

void unpack_keys(const Rows& rows, uint8_t* panels) {
  const int nibbles = rows.bits == 4 ? 2 : 1;
  const int64_t words = ceil_div(rows.bytes, 16) * 4;
  for (int64_t block = 0; block < ceil_div(rows.count, 16); ++block) {
    for (int64_t word = 0; word < words; ++word) {
      for (int high = 0; high < nibbles; ++high) {
        uint8_t* to = panels + ((block * words + word) * nibbles + high) * 64;
        for (int64_t i = 0; i < 64; ++i) to[i] = code_at(rows, block * 16 + i / 4, word * 4 + i % 4, high);
      }
    }
  }
}

void unpack_values(const Rows& rows, uint8_t* panels) {
  const int nibbles = rows.bits == 4 ? 2 : 1;
  for (int64_t unit = 0; unit < ceil_div(rows.bytes, 16); ++unit) {
    for (int high = 0; high < nibbles; ++high) {
      uint8_t* to = panels + (unit * nibbles + high) * TILE * 16;
      for (int64_t t = 0; t < ceil_div(rows.count, 4); ++t, to += 64) {
        for (int64_t i = 0; i < 64; ++i) to[i] = code_at(rows, 4 * t + i % 4, unit * 16 + i / 4, high);
      }
    }
  }
}

void multiply(const int8_t* a, int64_t stride, int64_t lines, const uint8_t* panels, int64_t quads, int64_t count,
              int64_t panel_quads, int32_t* out, int64_t out_stride) {
  for (int64_t line = 0; line < lines; ++line) {
    for (int64_t p = 0; p < count; ++p) {
      const uint8_t* panel = panels + p * panel_quads * 64;
      int32_t sums[16] = {};
      for (int64_t j = 0; j < quads; ++j) {
        const int8_t* quad = a + line * stride + 4 * j;
        for (int i = 0; i < 16; ++i) {
          const uint8_t* codes = panel + j * 64 + 4 * i;
          for (int c = 0; c < 4; ++c) sums[i] += int32_t(quad[c]) * int32_t(codes[c]);
        }
      }
      std::memcpy(out + line * out_stride + 16 * p, sums, sizeof sums);
    }
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
