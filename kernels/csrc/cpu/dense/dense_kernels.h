// Products with dense weights for a few rows: what an instruction set provides. Everything is float32, in sixteen lanes
// added up in one order: the same bits with every instruction set and for every number of rows.
#pragma once
#include <cstdint>

#include "common/isa.h"

namespace dfq {

constexpr int64_t DENSE_ROWS = 16;  // output rows that a thread takes at once, as many as a tile has

// [n][k]: float32, bfloat16, or codes of 8 bits with zero point 128 and scale [n][groups], a scale for `group` columns,
// a multiple of 16, or for all k
struct DenseWeight {
  const void* data;
  const uint16_t* scale;
  int kind;
  int64_t k, group;
};

struct DenseKernels {
  void (*load)(const void* x, int type, int64_t at, int64_t count, float* out);
  void (*store)(const float* x, int64_t count, int type, void* out, int64_t at);
  // outputs begin .. end - 1 of x [rows][stride] (zeros from k to the next multiple of 16) -> out [rows][out_stride]
  void (*dense)(const float* x, int64_t rows, int64_t stride, const DenseWeight& weight, int64_t begin, int64_t end,
                float* out, int64_t out_stride);
  // the same of bfloat16 x and weight, with zeros to the next multiple of 32; null: the instruction set has no such
  // product
  void (*dense_bf16)(const uint16_t* x, int64_t rows, int64_t stride, const DenseWeight& weight, int64_t begin,
                       int64_t end, float* out, int64_t out_stride);
  // the same of bfloat16 x and codes with a scale per row; or null
  void (*codes_bf16)(const uint16_t* x, int64_t rows, int64_t stride, const DenseWeight& weight, int64_t begin,
                     int64_t end, float* out, int64_t out_stride);
};

}  // namespace dfq

namespace dfq::DFQ_ISA {

extern const DenseKernels dense_table;

}  // namespace dfq::DFQ_ISA
