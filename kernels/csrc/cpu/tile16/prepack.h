// Canonical packed rows <-> tiles, eight codes at a time: the nibbles k0 .. k7 of 32 bits become k0 k4 k1 k5 k2 k6 k3
// k7.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/integers.h"
#include "common/isa.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

inline uint32_t spread_nibbles(uint32_t v) {  // 16 bits: nibbles 0 1 2 3 -> bytes
  v = (v | (v << 8)) & 0x00ff00ffu;
  return (v | (v << 4)) & 0x0f0f0f0fu;
}

inline uint32_t gather_nibbles(uint32_t v) {  // low nibbles of four bytes -> 16 bits
  v &= 0x0f0f0f0fu;
  v = (v | (v >> 4)) & 0x00ff00ffu;
  return (v | (v >> 8)) & 0xffffu;
}

void pack_tiles(const uint8_t* packed, int64_t n, int64_t k, uint8_t* tiles, int64_t begin, int64_t end) {
  const int64_t bytes = (k + 1) / 2, blocks = (k + TILE16_DEPTH - 1) / TILE16_DEPTH, whole = k / TILE16_DEPTH;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * TILE16_ROWS, rows = minimum(TILE16_ROWS, n - first);
    uint8_t* to = tiles + tile * blocks * TILE16_BYTES;
    for (int64_t j = 0; j < blocks; ++j, to += TILE16_BYTES) {
      for (int64_t r = 0; r < TILE16_ROWS; ++r) {
        uint32_t v = 0;
        if (r < rows) {
          const uint8_t* from = packed + (first + r) * bytes + 4 * j;
          if (j < whole) {
            std::memcpy(&v, from, 4);
          } else {  // codes beyond k must be 0, whatever the last byte holds
            std::memcpy(&v, from, size_t(bytes - 4 * j));
            v &= (1u << (4 * (k - TILE16_DEPTH * j))) - 1;
          }
        }
        v = spread_nibbles(v & 0xffffu) | (spread_nibbles(v >> 16) << 4);
        std::memcpy(to + 4 * r, &v, 4);
      }
    }
  }
}

void unpack_tiles(const uint8_t* tiles, int64_t n, int64_t k, uint8_t* packed, int64_t begin, int64_t end) {
  const int64_t bytes = (k + 1) / 2, blocks = (k + TILE16_DEPTH - 1) / TILE16_DEPTH;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * TILE16_ROWS, rows = minimum(TILE16_ROWS, n - first);
    const uint8_t* from = tiles + tile * blocks * TILE16_BYTES;
    for (int64_t j = 0; j < blocks; ++j, from += TILE16_BYTES) {
      for (int64_t r = 0; r < rows; ++r) {
        uint32_t v;
        std::memcpy(&v, from + 4 * r, 4);
        v = gather_nibbles(v) | (gather_nibbles(v >> 4) << 16);
        std::memcpy(packed + (first + r) * bytes + 4 * j, &v, size_t(minimum(4, bytes - 4 * j)));
      }
    }
  }
}

void sum_codes(const Tile16Weight& w, int32_t* sums, int64_t begin, int64_t end) {
  const int64_t depth = w.group / TILE16_DEPTH;
  for (int64_t tile = begin; tile < end; ++tile) {
    const uint8_t* from = w.tiles + tile * w.blocks * TILE16_BYTES;
    for (int64_t group = 0; group < w.groups; ++group) {
      const int64_t last = group + 1 < w.groups ? (group + 1) * depth : w.blocks;
      uint32_t total[TILE16_ROWS] = {};
      for (int64_t j = group * depth; j < last; ++j, from += TILE16_BYTES) {
        uint32_t v[TILE16_ROWS];
        std::memcpy(v, from, TILE16_BYTES);
        for (int64_t r = 0; r < TILE16_ROWS; ++r) {  // eight codes of at most 15 fit into a byte
          total[r] += (((v[r] & 0x0f0f0f0fu) + ((v[r] >> 4) & 0x0f0f0f0fu)) * 0x01010101u) >> 24;
        }
      }
      std::memcpy(sums + group * w.n16 + tile * TILE16_ROWS, total, sizeof total);
    }
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
