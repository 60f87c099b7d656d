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
// Instruction sets, weakest first on each processor: scalar; x86-64: AVX2 (FMA, F16C), AVX-512 (VNNI, BF16, VBMI);
// 64-bit ARM: NEON, dotprod, i8mm (and bf16).
enum { DFQ_SCALAR = 0, DFQ_AVX2 = 1, DFQ_AVX512 = 2, DFQ_NEON = 3, DFQ_DOTPROD = 4, DFQ_I8MM = 5 };

DFQ_API int dfq_abi_version(void);
DFQ_API int dfq_isa(void);                // the one in use
DFQ_API int dfq_isa_supported(int isa);   // compiled in, and this processor can run it
DFQ_API int dfq_set_isa(int isa);         // for the whole process; not while another call runs

// Run on the threads of an OpenMP library in this process (the addresses of its GOMP_parallel, omp_get_num_threads and
// omp_get_thread_num) instead of a pool of our own, or on that again (null). Not while another call runs.
DFQ_API int dfq_use_openmp(const void* parallel, const void* num_threads, const void* thread_num);

// The function of this name with all its arguments in one array, 8 bytes each (integers and addresses as int64, a float as
// a double): where every argument of a call costs time, as in Python's ctypes. Null: there is none.
typedef int (*dfq_packed_call)(const void* arguments);
DFQ_API dfq_packed_call dfq_packed(const char* name);

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

// The cache of one layer: codes [positions, batch, kv_heads, bytes], scale and zero [positions, batch, kv_heads] as
// dfq_kv_quantize writes them; zero null: symmetric. base null, or [order, order] of the Hadamard transform in blocks
// of `block` that keys are stored in (R3).

// key [batch, rows, heads, k_dim], value [batch, rows, heads, v_dim] -> positions `position` and on, in place. Keys are
// rotated in float32. heads: kv_heads.
DFQ_API int dfq_kv_append(const void* key, const void* value, int64_t dtype, int64_t batch, int64_t rows, int64_t heads,
                          int64_t k_dim, int64_t v_dim, uint8_t* k_packed, uint16_t* k_scale, uint8_t* k_zero,
                          uint8_t* v_packed, uint16_t* v_scale, uint8_t* v_zero, int64_t position, int64_t bits,
                          int64_t symmetric, float clip, const float* base, int64_t order, int64_t block,
                          int64_t threads);

// query [batch, rows, heads, k_dim] at the last `rows` (at most 64) of `length` positions -> out [batch, rows, heads,
// v_dim] = softmax(scaling q k^T) v. Row r of sequence b sees the positions from first[b, r] (null: 0) to
// length - rows - 1, and the new ones that tree [trees, rows, rows] shows it (null: those up to itself; trees 1 or
// batch). The `sinks` positions from sink_start[b] (null: 0) on are read from k_sink, v_sink [sinks, batch, kv_heads,
// dim], of the query's dtype and rotated like the stored keys. k_dim and v_dim at most 512.
DFQ_API int dfq_kv_attention(const void* query, int64_t dtype, int64_t batch, int64_t rows, int64_t heads,
                             int64_t kv_heads, int64_t k_dim, int64_t v_dim, const uint8_t* k_packed,
                             const uint16_t* k_scale, const uint8_t* k_zero, const uint8_t* v_packed,
                             const uint16_t* v_scale, const uint8_t* v_zero, int64_t length, int64_t bits,
                             float scaling, const float* base, int64_t order, int64_t block, const int64_t* first,
                             const uint8_t* tree, int64_t trees, const void* k_sink, const void* v_sink, int64_t sinks,
                             const int64_t* sink_start, void* out, int64_t threads);

// Codes as dfq_quantize_per_token gives them, for rows that are made and used up while in cache. base null: no transform,
// else [order, order] of the Hadamard transform in blocks of `block`, computed in float32 and not rounded.
DFQ_API int dfq_hadamard_quantize(const void* x, int64_t dtype, int64_t m, int64_t k, const float* base, int64_t order,
                                  int64_t block, int64_t bits, int64_t symmetric, float clip, int8_t* codes,
                                  float* scale, int32_t* zero, int64_t threads);

// Of residual += x (residual null: x), divided by its root mean square, times weight [k] (or null: 1); every step is
// rounded to dtype, the type of x, residual and weight.
DFQ_API int dfq_rmsnorm_quantize(const void* x, int64_t dtype, int64_t m, int64_t k, void* residual, const void* weight,
                                 float epsilon, int64_t bits, int64_t symmetric, float clip, int8_t* codes,
                                 float* scale, int32_t* zero, int64_t threads);

// Of silu(gate) * up, both [m, k], rounded to dtype after each of the two steps.
DFQ_API int dfq_silu_mul_hadamard_quantize(const void* gate, const void* up, int64_t dtype, int64_t m, int64_t k,
                                           const float* base, int64_t order, int64_t block, int64_t bits,
                                           int64_t symmetric, float clip, int8_t* codes, float* scale, int32_t* zero,
                                           int64_t threads);

#ifdef __cplusplus
}
#endif
