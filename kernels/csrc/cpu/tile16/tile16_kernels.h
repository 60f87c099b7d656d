// The tile16 family: products with 4-bit weights that were prepacked once, at load, into a layout that every
// instruction set reads in order. Internal interface: what an instruction set provides (decode: up to 16 rows; gemm:
// more), and who owns memory and threads (tiled.cpp).
//
// tiles uint8 [n16 / 16][k8 / 8][64], n16 = n rounded up to 16, k8 = k rounded up to 8; padding codes are 0.
// Byte t = 4 * r + c of k-block j (r 0..15: output row inside the tile, c 0..3):
//   low nibble = code(r, 8 j + c), high nibble = code(r, 8 j + 4 + c).
// So 64 bytes are 16 rows of 8 codes: masked and shifted they are two operands of VPDPBUSD (four products a lane, one
// lane an output row), and the 16-bit lanes hold, shifted right by 0, 4, 8, 12, the codes of the pairs
// (k0, k2), (k4, k6), (k1, k3), (k5, k7), of which VPDPBF16PS takes two.
#pragma once
#include <cstdint>

#include "common/isa.h"

namespace dfq {

constexpr int64_t TILE16_ROWS = 16;    // output rows (columns of the product) of a tile
constexpr int64_t TILE16_DEPTH = 8;    // columns of the weight in one k-block
constexpr int64_t TILE16_BYTES = 64;   // of one k-block
constexpr int64_t DECODE_ROWS = 16;   // most activation rows that decode takes at once

// w = scale * (u - zero). Padding: scale 0, zero 8, sums 0. A group is a multiple of 8 columns or all of them.
struct Tile16Weight {
  const uint8_t* tiles;
  const uint16_t* scale;  // bfloat16 bits [groups][n16]
  const uint8_t* zero;    // [groups][n16], or null: 8
  const int32_t* sums;    // [groups][n16] sum of u over the group's columns; null where activations have no zero point
  int64_t n, k;           // true sizes
  int64_t n16, blocks;    // n rounded up to 16; k-blocks, k8 / 8
  int64_t group, groups;  // columns per scale (k when there is one per row); the last group may be shorter
};

struct FloatRows {  // x [m][k], DFQ_FLOAT32, DFQ_BFLOAT16 or DFQ_FLOAT16
  const void* x;
  int type;
  int64_t m;
};

struct IntegerRows {  // x = scale * (q - zero), q [m][k]
  const int8_t* q;
  const float* scale;   // [m]
  const int32_t* zero;  // [m], or null: 0. Not null needs TiledWeight::sums
  int64_t m;
};

// y [m][n] = product (float32) + bias, cast once. The integer product of row r and output n is, in this order of
// float32 operations (bit-equal everywhere, and to the torch reference):
//   total = 0; for each group: total += float(exact) * scale[group][n]; y = total * x_scale[r]; y += bias[n]
//   exact = sum(u q) - zero * sum(q) - x_zero * (sums - zero * columns of the group)    (modulo 2^32)
struct Tile16Out {
  void* y;
  int type;
  const float* bias;  // [n] or null
};

// Rows prepared for decode, once per call. Blocks are padded with zeros to k8.
struct Tile16Call {
  const Tile16Weight* weight;
  const void* rows;          // what prepare_* wrote
  const float* x_sums;       // float rows: [m][groups] sums of x;  integer rows: null
  const int32_t* q_sums;     // integer rows: [m][groups] sums of q
  const float* x_scale;      // integer rows
  const int32_t* x_zero;
  int64_t m;
  Tile16Out out;
};

struct Tile16Kernels {
  // canonical packed rows [n][ceil(k / 2)] <-> tiles begin .. end - 1
  void (*pack)(const uint8_t* packed, int64_t n, int64_t k, uint8_t* tiles, int64_t begin, int64_t end);
  void (*unpack)(const uint8_t* tiles, int64_t n, int64_t k, uint8_t* packed, int64_t begin, int64_t end);
  // TiledWeight::sums of tiles begin .. end - 1, from tiles alone
  void (*sum_codes)(const Tile16Weight& weight, int32_t* sums, int64_t begin, int64_t end);
  // m <= DECODE_ROWS rows; `rows` holds *_bytes(m, weight) bytes, 64-byte aligned
  int64_t (*float_bytes)(int64_t m, const Tile16Weight& weight, int type);
  void (*prepare_float)(const FloatRows& x, const Tile16Weight& weight, void* rows, float* x_sums);
  void (*decode_float)(const Tile16Call& call, int type, int64_t begin, int64_t end);  // tiles begin .. end - 1
  int64_t (*integer_bytes)(int64_t m, const Tile16Weight& weight);
  void (*prepare_integer)(const IntegerRows& x, const Tile16Weight& weight, void* rows, int32_t* q_sums);
  void (*decode_integer)(const Tile16Call& call, int64_t begin, int64_t end);
};

}  // namespace dfq

namespace dfq::DFQ_ISA {

extern const Tile16Kernels tile16_table;

}  // namespace dfq::DFQ_ISA
