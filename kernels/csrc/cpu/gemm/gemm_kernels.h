// Products of the tile16 family with many rows (prefill). gemm.cpp owns memory and threads, an instruction set provides
// the functions of GemmKernels. Rows of activations are packed once into blocks that micro-kernels read in order; a
// chunk of work is a few tiles of the weight times a range of blocks, with k cut into pieces that stay in L1.
// No sum depends on the partition: results are the same for every number of threads and rows.
#pragma once
#include "common/isa.h"
#include "tile16/tile16_kernels.h"

namespace dfq {

constexpr int64_t NARROW_GROUP = 128;  // columns whose sum of signed bytes, and of codes times zeros, fit into 16 bits

// A slab of rows. All pointers start at its first row; blocks are padded with zero rows.
struct GemmCall {
  const Tile16Weight* weight;
  int64_t m, blocks;  // rows; blocks of GemmKernels::height rows
  char* rows;         // packed
  int32_t* sums;      // integer: [block][group][row], see `narrow`; float: [block], whether the low parts matter
  bool narrow;        // sums hold 16-bit pairs (-sum(q), -x_zero), the operand of one multiply-add; else sum(q)
  const void* x;      // unpacked rows: int8, or floats of `type`
  int type;
  const float* x_scale;
  const int32_t* x_zero;
  Tile16Out out;
};

struct GemmKernels {
  int64_t height;  // rows of a block
  int64_t tiles;   // tiles of a chunk of work
  int64_t (*integer_bytes)(const Tile16Weight& weight);         // of a block
  int64_t (*float_bytes)(const Tile16Weight& weight, int type);  // of a block
  void (*pack_integer)(const GemmCall& call, int64_t begin, int64_t end);  // blocks begin .. end - 1
  void (*pack_float)(const GemmCall& call, int64_t begin, int64_t end);
  int64_t (*work_bytes)(int64_t blocks);  // scratch of one chunk of work
  // tiles first .. last - 1 (at most `tiles`) times blocks begin .. end - 1
  void (*integer)(const GemmCall& call, int64_t first, int64_t last, int64_t begin, int64_t end, void* work);
  void (*real)(const GemmCall& call, int64_t first, int64_t last, int64_t begin, int64_t end, void* work);
};

void gemm_integer(const GemmKernels& run, const Tile16Weight& weight, const IntegerRows& x, const Tile16Out& out,
                  int64_t threads);
void gemm_float(const GemmKernels& run, const Tile16Weight& weight, const FloatRows& x, const Tile16Out& out,
                int64_t threads);

}  // namespace dfq

namespace dfq::DFQ_ISA {

extern const GemmKernels gemm_table;

}  // namespace dfq::DFQ_ISA
