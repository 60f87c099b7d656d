// Row kernels that do several steps while a row is in cache: what an instruction set provides beside kernels.h.
// fused.cpp owns memory, the partition over threads and the C interface. A row is at most a few hundred kilobytes.
#pragma once
#include <cstdint>

namespace dfq {

struct Turned {  // a block-diagonal Hadamard transform; base_t null: none
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
  void (*turn_quantize)(const void* x, int type, int64_t k, const Turned& turn, const Quantized& out, float* row,
                        int64_t begin, int64_t end);
  // one row -> float [k], rounded to the type after every step as separate operators would
  void (*norm)(const NormedRows& rows, int64_t row, float* to);
  void (*silu_mul)(const void* gate, const void* up, int type, int64_t at, int64_t k, float* to);
};

extern const FusedKernels scalar_fused;
#ifdef DFQ_HAVE_AVX2
extern const FusedKernels avx2_fused;
#endif
#ifdef DFQ_HAVE_NEON
extern const FusedKernels neon_fused;
#endif
#ifdef DFQ_HAVE_AVX512
extern const FusedKernels avx512_fused;
// these two serve as Kernels::quantize_rows and Kernels::hadamard_rows
void avx512_quantize_rows(const void* x, int type, int64_t k, int bits, bool symmetric, float clip, int8_t* codes,
                          float* scale, int32_t* zero, int64_t begin, int64_t end);
void avx512_hadamard_rows(const void* x, int type, int64_t block, const float* base_t, int64_t order, void* out,
                          float* scratch, int64_t begin, int64_t end);
#endif

}  // namespace dfq
