// Integer rows of a product with many rows, packed once: pieces of k, and blocks of HEIGHT rows inside a piece.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/integers.h"
#include "common/isa.h"
#include "gemm/epilogue.h"
#include "gemm/gemm_kernels.h"
#include "gemm/vectors.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int64_t DEPTH = 640;                         // columns of k in a piece, at most
constexpr int64_t PIECE_GROUPS = DEPTH / TILE16_DEPTH;  // most groups in a piece

inline int64_t columns_of(const Tile16Weight& w, int64_t group) { return minimum(w.group, w.k - group * w.group); }

// First k-block behind a group.
inline int64_t end_of(const Tile16Weight& w, int64_t group) {
  return group + 1 < w.groups ? (group + 1) * w.group / TILE16_DEPTH : w.blocks;
}

int64_t integer_bytes(const Tile16Weight& w) { return HEIGHT * w.blocks * TILE16_DEPTH; }

// k-blocks at .. stop - 1
struct Piece {
  int64_t at, stop;
};

int64_t groups_of_piece(const Tile16Weight& w) { return w.group < DEPTH ? minimum(PIECE_GROUPS, DEPTH / w.group) : 1; }

// The piece that k-block `first` lies in: whole groups, or a part of one.
Piece piece_of(const GemmCall& call, int64_t first) {
  const Tile16Weight& w = *call.weight;
  if (w.groups == 1 || !call.narrow) {
    const int64_t depth = w.groups == 1 ? w.blocks : w.group / TILE16_DEPTH, start = first / depth * depth;
    const int64_t at = start + (first - start) / (DEPTH / TILE16_DEPTH) * (DEPTH / TILE16_DEPTH);
    return {at, minimum(at + DEPTH / TILE16_DEPTH, minimum(start + depth, w.blocks))};
  }
  const int64_t length = groups_of_piece(w) * w.group / TILE16_DEPTH, at = first / length * length;
  return {at, minimum(at + length, w.blocks)};
}

// Rows of a block from k-block `first` on: [piece][block][quad of k][row][4 codes], so that a piece of all blocks is
// one stretch of memory.
char* integer_rows(const GemmCall& call, int64_t block, const Piece& piece, int64_t first) {
  return call.rows + (piece.at * call.blocks + block * (piece.stop - piece.at) + first - piece.at) * 8 * HEIGHT;
}

// Quads of codes of one row in a piece, zeros beyond k.
void pack_quads(const int8_t* q, int64_t k, const Piece& piece, char* to) {
  for (int64_t j = 2 * piece.at; j < 2 * piece.stop; ++j, to += 4 * HEIGHT) {
    if (4 * j + 4 <= k) {
      std::memcpy(to, q + 4 * j, 4);
    } else {
      std::memset(to, 0, 4);
      if (4 * j < k) std::memcpy(to, q + 4 * j, size_t(k - 4 * j));
    }
  }
}

void pack_integer(const GemmCall& call, int64_t begin, int64_t end) {
  const Tile16Weight& w = *call.weight;
  for (int64_t block = begin; block < end; ++block) {
    int32_t* sums = call.sums + block * w.groups * HEIGHT;
    for (int64_t r = 0; r < HEIGHT; ++r) {
      const int64_t row = block * HEIGHT + r;
      const bool real = row < call.m;
      const int8_t* q = static_cast<const int8_t*>(call.x) + (real ? row : 0) * w.k;
      for (int64_t at = 0; at < w.blocks;) {
        const Piece piece = piece_of(call, at);
        pack_quads(q, real ? w.k : 0, piece, integer_rows(call, block, piece, piece.at) + 4 * r);
        at = piece.stop;
      }
      if (!real) {
        for (int64_t group = 0; group < w.groups; ++group) sums[group * HEIGHT + r] = 0;
        continue;
      }
      for (int64_t group = 0; group < w.groups; ++group) {
        const int32_t sum = sum_bytes(q + group * w.group, columns_of(w, group));
        const int32_t zero = call.x_zero ? call.x_zero[row] : 0;
        sums[group * HEIGHT + r] = call.narrow ? int32_t((uint32_t(-sum) & 0xffff) | (uint32_t(-zero) << 16)) : sum;
      }
    }
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
