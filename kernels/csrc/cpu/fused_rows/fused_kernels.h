// Row kernels that do several steps while a row is in cache: what an instruction set provides beside row_kernels.h.
// fused_rows.cpp owns memory, the partition over threads and the C interface. A row is at most a few hundred kilobytes.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "rows/row_kernels.h"

namespace dfq {

struct TransposedHadamard {  // a block-diagonal Hadamard transform; base_t null: none
  const float* base_t;  // transposed [order][order]
  int64_t order, block;
};

struct Quantized {  // where codes go, as dfq_quantize_per_token writes them
  int bits;
  bool symmetric;
  float clip;
  int8_t* codes;   // [rows][k]
  float* scale;    // [rows]
  int32_t* zero;   // [rows]
};

struct NormedRows {  // RMSNorm: residual += x (where given), then residual or x over its root mean square, times weight
  const void* x;
  void* residual;      // [rows][k] of the same type, or null
  const void* weight;  // [k] of the same type, or null
  int type;
  int64_t k;
  float epsilon;
};

struct FusedKernels {
  // rows begin .. end - 1 of x [rows][k]: transform, then codes. row: k + 2 * block floats of scratch
  void (*hadamard_quantize)(const void* x, int type, int64_t k, const TransposedHadamard& hadamard,
                            const Quantized& out, float* row, int64_t begin, int64_t end);
  // one row -> float [k], rounded to the type after every step as separate operators would
  void (*norm)(const NormedRows& rows, int64_t row, float* to);
  void (*silu_mul)(const void* gate, const void* up, int type, int64_t at, int64_t k, float* to);
};

}  // namespace dfq

namespace dfq::DFQ_ISA {

extern const FusedKernels fused_table;
#if DFQ_HAS_AVX512
// these two take the place of the functions of AVX2 in RowKernels
extern const decltype(RowKernels::quantize_rows) quantize_rows_entry;
extern const decltype(RowKernels::hadamard_rows) hadamard_rows_entry;
#endif

}  // namespace dfq::DFQ_ISA
