// Products with 4-bit weights in the canonical layout, tile by tile: what an instruction set provides. canonical.cpp
// owns memory, the partition over threads and the C interface.
#pragma once
#include <cstdint>

#include "common/isa.h"

namespace dfq {

// Products are computed in tiles of TILE_N output columns (two panels of PANEL_N) by up to TILE_M rows, the rows in
// blocks of BLOCK_M: what a 16-register machine holds. Depths: how much of k is unpacked at a time, to stay in L1/L2.
constexpr int64_t BLOCK_M = 6, PANEL_N = 16, TILE_N = 32, TILE_M = 192;
constexpr int64_t FLOAT_DEPTH = 256, INTEGER_DEPTH = 512;

struct Weight {  // packed 4-bit codes [n, ceil(k / 2)], scale bfloat16 [n, groups], zero [n, groups] or null (8)
  const uint8_t* packed;
  const uint16_t* scale;
  const uint8_t* zero;
  int64_t n, k, group, groups;  // group: columns per scale, k when there is one scale per row
};

// Activation codes reordered for the integer tiles. Block b holds `height` rows (BLOCK_M, fewer in the last) and starts
// at b * BLOCK_M * stride; inside, group g starts at height * g * group_stride, as [quad of k][row][4 codes]. Groups
// are padded to quads with zeros: group_stride and stride are multiples of 4.
struct Tokens {
  const int8_t* codes;
  const int32_t* sums;  // [m, groups] sums of codes
  const float* scale;   // [m]
  const int32_t* zero;  // [m]
  int64_t m, stride, group_stride;
  int burst;  // how many sums of two products u * q fit into 16 bits
};

struct CanonicalKernels {
  void (*dequantize_rows)(const Weight& weight, int bits, float* out, int64_t begin, int64_t end);
  // blocks begin..end of x [m, k] as float, block b at b * BLOCK_M * k, inside [k][row]
  void (*pack_floats)(const void* x, int type, int64_t m, int64_t k, float* out, int64_t begin, int64_t end);
  // rows begin..end (begin a multiple of BLOCK_M, at most TILE_M rows), columns from `column` on, at most TILE_N
  void (*float_tile)(const float* x, int64_t m, const Weight& weight, int64_t begin, int64_t end, int64_t column,
                     int type, void* out);
  // blocks begin..end of q [m, k] into the layout of Tokens, with sums; returns the largest |q|
  int (*pack_tokens)(const int8_t* q, const Weight& weight, const Tokens& layout, int8_t* codes, int32_t* sums,
                     int64_t begin, int64_t end);
  void (*integer_tile)(const Tokens& tokens, const Weight& weight, int64_t begin, int64_t end, int64_t column,
                       float* out);
};

}  // namespace dfq

namespace dfq::DFQ_ISA {

extern const CanonicalKernels canonical_table;

}  // namespace dfq::DFQ_ISA
