// The C interface of libdfq_cpu.so. Plain pointers and sizes: no torch, no C++ types, one int result.
//
// Every function returns 0, or DFQ_NO_MEMORY, or DFQ_BAD_ARGUMENT; outputs are then unspecified. Arrays are dense and
// row-major, need no alignment, and do not overlap. `threads` is the most threads the call may use; results are the
// same bits for every value of it. Codes are packed as a little-endian bit string per row (4 bit: low nibble first).
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DFQ_API __attribute__((visibility("default")))

enum { DFQ_OK = 0, DFQ_NO_MEMORY = 1, DFQ_BAD_ARGUMENT = 2 };
enum { DFQ_FLOAT32 = 0, DFQ_BFLOAT16 = 1, DFQ_FLOAT16 = 2 };  // dtype arguments
enum { DFQ_SCALAR = 0, DFQ_AVX2 = 1, DFQ_AVX512 = 2 };        // instruction sets, weakest first

DFQ_API int dfq_abi_version(void);
DFQ_API int dfq_isa(void);                // the one in use
DFQ_API int dfq_isa_supported(int isa);   // compiled in, and this processor can run it
DFQ_API int dfq_set_isa(int isa);         // for the whole process; not while another call runs

// codes [n, k] (each below 2^bits) <-> packed [n, ceil(k bits / 8)]; bits 2..8.
DFQ_API int dfq_pack(const uint8_t* codes, int64_t n, int64_t k, int64_t bits, uint8_t* packed, int64_t threads);
DFQ_API int dfq_unpack(const uint8_t* packed, int64_t n, int64_t k, int64_t bits, uint8_t* codes, int64_t threads);

// w[n, k] = scale * (u - zero): scale bfloat16 bits [n, groups], zero [n, groups] or null (2^(bits-1)), group 0 = one
// scale per row.
DFQ_API int dfq_dequantize(const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t n, int64_t k,
                           int64_t bits, int64_t group, float* w, int64_t threads);

// x [m, k] -> codes [m, k], scale [m], zero [m]: x = scale * (q - zero). A row with NaN or Inf: scale NaN, codes 0.
DFQ_API int dfq_quantize_per_token(const void* x, int64_t dtype, int64_t m, int64_t k, int64_t bits,
                                   int64_t symmetric, float clip, int8_t* codes, float* scale, int32_t* zero,
                                   int64_t threads);

// out = x (base (x) Sylvester(block / order)) / sqrt(block) for each of `rows` rows of `block` values.
DFQ_API int dfq_hadamard(const void* x, int64_t dtype, int64_t rows, int64_t block, const float* base, int64_t order,
                         void* out, int64_t threads);

// out [m, n] = x [m, k] w[n, k]^T with 4-bit w as in dfq_dequantize; float32 sums; out has the dtype of x.
DFQ_API int dfq_w4a16_mm(const void* x, int64_t dtype, int64_t m, int64_t n, int64_t k, const uint8_t* packed,
                         const uint16_t* scale, const uint8_t* zero, int64_t group, void* out, int64_t threads);

// out[m, n] = x_scale[m] sum_g scale[n, g] sum_{k in g} (q[m, k] - x_zero[m]) (u[n, k] - zero[n, g]): exact integer
// sums per group, groups added in order; k at most 2^19. The range of q is measured: narrow codes are multiplied
// faster, whatever their nominal width.
DFQ_API int dfq_w4a8_mm(const int8_t* q, const float* x_scale, const int32_t* x_zero, int64_t m, int64_t n, int64_t k,
                        const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t group, float* out,
                        int64_t threads);

// Each row of x [rows, width] -> packed unsigned codes, float16 scale, zero (2^(bits-1) when symmetric).
DFQ_API int dfq_kv_quantize(const void* x, int64_t dtype, int64_t rows, int64_t width, int64_t bits,
                            int64_t symmetric, float clip, uint8_t* packed, uint16_t* scale, uint8_t* zero,
                            int64_t threads);
DFQ_API int dfq_kv_dequantize(const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t rows,
                              int64_t width, int64_t bits, int64_t dtype, void* out, int64_t threads);

#ifdef __cplusplus
}
#endif
