// The C interface of libdfq_cpu.so. Plain pointers and sizes: no torch, no C++ types, one int result.
// Written by generate_abi.py from dfrot_kernels/abi; edit the description, not this file.
//
// A call takes one struct of arguments, each a word of 8 bytes, so that callers name what they pass. It returns 0, or
// DFQ_NO_MEMORY, or DFQ_BAD_ARGUMENT; outputs are then unspecified. Arrays are dense and row-major, need no alignment,
// and do not overlap. `threads` is the most threads the call may use; results are the same bits for every value of it.
// Codes are packed as a little-endian bit string per row (4 bit: low nibble first). Weights are w = scale * (u - zero)
// with unsigned codes u, activations x = scale * (q - zero) with signed codes q.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define DFQ_ASSERT static_assert
#else
#define DFQ_ASSERT _Static_assert
#endif
#define DFQ_AT(tag, field, offset) DFQ_ASSERT(offsetof(struct tag, field) == offset, "not where the description has it")
#define DFQ_SIZE(tag, size) DFQ_ASSERT(sizeof(struct tag) == size, "not as large as the description has it")

#define DFQ_API __attribute__((visibility("default")))

// What a call returns.
enum dfq_status { DFQ_OK = 0, DFQ_NO_MEMORY = 1, DFQ_BAD_ARGUMENT = 2 };

// Types of tensors (`dtype`).
enum dfq_dtype { DFQ_FLOAT32 = 0, DFQ_BFLOAT16 = 1, DFQ_FLOAT16 = 2 };

// Instruction sets, weakest first on each processor: scalar; x86-64: AVX2 (FMA, F16C), AVX-512 (VNNI, BF16, VBMI);
// 64-bit ARM: NEON, dotprod, i8mm (and bf16).
enum dfq_instruction_set { DFQ_SCALAR = 0, DFQ_AVX2 = 1, DFQ_AVX512 = 2, DFQ_NEON = 3, DFQ_DOTPROD = 4, DFQ_I8MM = 5 };

// How a weight of a draft or head is stored, beside the dense types of enum dfq_dtype (float32, bfloat16): a byte a
// code with bfloat16 scales and zero point 128, or tiles of 4-bit codes (cpu/tile16/tile16_kernels.h).
enum dfq_kind { DFQ_CODES8 = 8, DFQ_TILES = 16 };

// The description that this library was built with (dfq_abi_description.h): lines, the last one ended too.
DFQ_API const char* dfq_abi_describe(void);

DFQ_API int dfq_isa(void);               // the instruction set in use
DFQ_API int dfq_isa_supported(int isa);  // compiled in, and this processor can run it
DFQ_API int dfq_set_isa(int isa);        // for the whole process; not while another call runs

// Run on the threads of an OpenMP library instead of a pool of our own, or on that again (null). Not while another call
// runs.
struct dfq_openmp;
DFQ_API int dfq_use_openmp(const struct dfq_openmp* functions);

// Functions of an OpenMP library in this process: its GOMP_parallel, omp_get_num_threads and omp_get_thread_num.
struct dfq_openmp {
  const void* parallel;
  const void* num_threads;
  const void* thread_num;
};
DFQ_AT(dfq_openmp, parallel, 0); DFQ_AT(dfq_openmp, num_threads, 8); DFQ_AT(dfq_openmp, thread_num, 16);
DFQ_SIZE(dfq_openmp, 24);

// One linear on quantized or 16-bit activations; weights as in dfq_tiled_w4a16. bits: of the activations, 16 = not
// quantized. base_t [order, order], transposed, of the Hadamard transform in blocks of `block` that its input takes
// first; null: none.
struct dfq_linear {
  const uint8_t* tiles;
  const uint16_t* scale;
  const uint8_t* zero;  // or null
  const int32_t* sums;  // or null
  const float* bias;  // or null
  int64_t n;
  int64_t k;
  int64_t group;
  int64_t bits;
  int64_t symmetric;
  double clip;
  const float* base_t;  // or null
  int64_t order;
  int64_t block;
};
DFQ_AT(dfq_linear, tiles, 0); DFQ_AT(dfq_linear, scale, 8); DFQ_AT(dfq_linear, zero, 16);
DFQ_AT(dfq_linear, sums, 24); DFQ_AT(dfq_linear, bias, 32); DFQ_AT(dfq_linear, n, 40); DFQ_AT(dfq_linear, k, 48);
DFQ_AT(dfq_linear, group, 56); DFQ_AT(dfq_linear, bits, 64); DFQ_AT(dfq_linear, symmetric, 72);
DFQ_AT(dfq_linear, clip, 80); DFQ_AT(dfq_linear, base_t, 88); DFQ_AT(dfq_linear, order, 96);
DFQ_AT(dfq_linear, block, 104); DFQ_SIZE(dfq_linear, 112);

// Gains of the norms as float32. q_norm, k_norm [head_dim] or null. k_shift [kv_heads, head_dim] or null: subtracted
// from keys behind R3, before they are quantized. q, k, v read the first norm, gate and up the second.
struct dfq_block {
  const float* input_norm;
  const float* mlp_norm;
  const float* q_norm;  // or null
  const float* k_norm;  // or null
  const float* k_shift;  // or null
  struct dfq_linear q;
  struct dfq_linear k;
  struct dfq_linear v;
  struct dfq_linear o;
  struct dfq_linear gate;
  struct dfq_linear up;
  struct dfq_linear down;
};
DFQ_AT(dfq_block, input_norm, 0); DFQ_AT(dfq_block, mlp_norm, 8); DFQ_AT(dfq_block, q_norm, 16);
DFQ_AT(dfq_block, k_norm, 24); DFQ_AT(dfq_block, k_shift, 32); DFQ_AT(dfq_block, q, 40); DFQ_AT(dfq_block, k, 152);
DFQ_AT(dfq_block, v, 264); DFQ_AT(dfq_block, o, 376); DFQ_AT(dfq_block, gate, 488); DFQ_AT(dfq_block, up, 600);
DFQ_AT(dfq_block, down, 712); DFQ_SIZE(dfq_block, 824);

// Keys and values of one block as dfq_kv_append writes them. k_sink, v_sink [sinks, batch, kv_heads, head_dim] of the
// model's dtype: the first positions in full precision, which are written there beside the codes; null where the
// model has no sinks.
struct dfq_cache {
  uint8_t* k_packed;
  uint16_t* k_scale;
  uint8_t* k_zero;  // or null
  uint8_t* v_packed;
  uint16_t* v_scale;
  uint8_t* v_zero;  // or null
  void* k_sink;  // or null
  void* v_sink;  // or null
};
DFQ_AT(dfq_cache, k_packed, 0); DFQ_AT(dfq_cache, k_scale, 8); DFQ_AT(dfq_cache, k_zero, 16);
DFQ_AT(dfq_cache, v_packed, 24); DFQ_AT(dfq_cache, v_scale, 32); DFQ_AT(dfq_cache, v_zero, 40);
DFQ_AT(dfq_cache, k_sink, 48); DFQ_AT(dfq_cache, v_sink, 56); DFQ_SIZE(dfq_cache, 64);

// A stack of decoder blocks. window: positions that a row sees, itself included; 0 = all. sinks: leading positions
// read from k_sink and v_sink. r3_base_t: transposed, of the Hadamard transform of keys and queries (R3), or null.
// What the torch modules round to the model's dtype is rounded here, in the same order.
struct dfq_decoder {
  const struct dfq_block* blocks;
  const float* final_norm;
  int64_t dtype;
  int64_t layers;
  int64_t hidden;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t mlp;
  int64_t window;
  int64_t sinks;
  double eps;
  double scaling;
  int64_t kv_bits;
  int64_t kv_symmetric;
  double kv_clip;
  const float* r3_base_t;  // or null
  int64_t r3_order;
  int64_t r3_block;
};
DFQ_AT(dfq_decoder, blocks, 0); DFQ_AT(dfq_decoder, final_norm, 8); DFQ_AT(dfq_decoder, dtype, 16);
DFQ_AT(dfq_decoder, layers, 24); DFQ_AT(dfq_decoder, hidden, 32); DFQ_AT(dfq_decoder, heads, 40);
DFQ_AT(dfq_decoder, kv_heads, 48); DFQ_AT(dfq_decoder, head_dim, 56); DFQ_AT(dfq_decoder, mlp, 64);
DFQ_AT(dfq_decoder, window, 72); DFQ_AT(dfq_decoder, sinks, 80); DFQ_AT(dfq_decoder, eps, 88);
DFQ_AT(dfq_decoder, scaling, 96); DFQ_AT(dfq_decoder, kv_bits, 104); DFQ_AT(dfq_decoder, kv_symmetric, 112);
DFQ_AT(dfq_decoder, kv_clip, 120); DFQ_AT(dfq_decoder, r3_base_t, 128); DFQ_AT(dfq_decoder, r3_order, 136);
DFQ_AT(dfq_decoder, r3_block, 144); DFQ_SIZE(dfq_decoder, 152);

// A weight [n, k] of a draft. kind: how it is stored, of enum dfq_kind. bias [n], added to the product, or null. data
// null: there is none.
struct dfq_draft_linear {
  const void* data;
  const uint16_t* scale;  // or null
  const uint8_t* zero;  // or null
  const float* bias;  // or null
  int64_t kind;
  int64_t n;
  int64_t k;
  int64_t group;
};
DFQ_AT(dfq_draft_linear, data, 0); DFQ_AT(dfq_draft_linear, scale, 8); DFQ_AT(dfq_draft_linear, zero, 16);
DFQ_AT(dfq_draft_linear, bias, 24); DFQ_AT(dfq_draft_linear, kind, 32); DFQ_AT(dfq_draft_linear, n, 40);
DFQ_AT(dfq_draft_linear, k, 48); DFQ_AT(dfq_draft_linear, group, 56); DFQ_SIZE(dfq_draft_linear, 64);

// norms: gains as float32. side_norm [hidden]: of a self block whose q, k, v read [norm(x), norm(h)] side by side, x
// the inputs of the call and h the residual stream; null: they read norm(h). slopes [heads]: of the lean of a cross
// block, or null. attention_gate, mlp_gate: factors of what the two halves add. q.data null: a block without
// attention. cross: 1 where keys and values come from features. feature_norm [hidden]: of a norm on new features
// before they are keys; null: none. joins: 1 where the residual stream gets the call's `stream` added before this
// block.
struct dfq_draft_block {
  const float* input_norm;
  const float* side_norm;  // or null
  const float* mlp_norm;
  const float* q_norm;  // or null
  const float* k_norm;  // or null
  const float* slopes;  // or null
  const float* feature_norm;  // or null
  double attention_gate;
  double mlp_gate;
  int64_t cross;
  int64_t joins;
  struct dfq_draft_linear q;
  struct dfq_draft_linear k;
  struct dfq_draft_linear v;
  struct dfq_draft_linear o;
  struct dfq_draft_linear gate;
  struct dfq_draft_linear up;
  struct dfq_draft_linear down;
};
DFQ_AT(dfq_draft_block, input_norm, 0); DFQ_AT(dfq_draft_block, side_norm, 8); DFQ_AT(dfq_draft_block, mlp_norm, 16);
DFQ_AT(dfq_draft_block, q_norm, 24); DFQ_AT(dfq_draft_block, k_norm, 32); DFQ_AT(dfq_draft_block, slopes, 40);
DFQ_AT(dfq_draft_block, feature_norm, 48); DFQ_AT(dfq_draft_block, attention_gate, 56);
DFQ_AT(dfq_draft_block, mlp_gate, 64); DFQ_AT(dfq_draft_block, cross, 72); DFQ_AT(dfq_draft_block, joins, 80);
DFQ_AT(dfq_draft_block, q, 88); DFQ_AT(dfq_draft_block, k, 152); DFQ_AT(dfq_draft_block, v, 216);
DFQ_AT(dfq_draft_block, o, 280); DFQ_AT(dfq_draft_block, gate, 344); DFQ_AT(dfq_draft_block, up, 408);
DFQ_AT(dfq_draft_block, down, 472); DFQ_SIZE(dfq_draft_block, 536);

// A draft. final_norm null: outputs are not normed. dtype: of inputs, outputs and buffers, float32 or bfloat16.
// Everything between the inputs and the outputs is float32, whatever the weights are stored in: a draft need not
// round as its modules do, since every drafted token is verified.
struct dfq_draft {
  const struct dfq_draft_block* blocks;
  const float* final_norm;  // or null
  int64_t dtype;
  int64_t layers;
  int64_t hidden;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t mlp;
  double eps;
};
DFQ_AT(dfq_draft, blocks, 0); DFQ_AT(dfq_draft, final_norm, 8); DFQ_AT(dfq_draft, dtype, 16);
DFQ_AT(dfq_draft, layers, 24); DFQ_AT(dfq_draft, hidden, 32); DFQ_AT(dfq_draft, heads, 40);
DFQ_AT(dfq_draft, kv_heads, 48); DFQ_AT(dfq_draft, head_dim, 56); DFQ_AT(dfq_draft, mlp, 64);
DFQ_AT(dfq_draft, eps, 72); DFQ_SIZE(dfq_draft, 80);

// Keys and values of one block, [kv_heads, capacity, head_dim] each.
struct dfq_draft_buffer {
  void* k;
  void* v;
  int64_t capacity;
};
DFQ_AT(dfq_draft_buffer, k, 0); DFQ_AT(dfq_draft_buffer, v, 8); DFQ_AT(dfq_draft_buffer, capacity, 16);
DFQ_SIZE(dfq_draft_buffer, 24);

// codes [n, k], each below 2^bits -> packed [n, ceil(k bits / 8)]; bits 2..8.
struct dfq_pack_args {
  const uint8_t* codes;
  int64_t n;
  int64_t k;
  int64_t bits;
  uint8_t* packed;
  int64_t threads;
};
DFQ_AT(dfq_pack_args, codes, 0); DFQ_AT(dfq_pack_args, n, 8); DFQ_AT(dfq_pack_args, k, 16);
DFQ_AT(dfq_pack_args, bits, 24); DFQ_AT(dfq_pack_args, packed, 32); DFQ_AT(dfq_pack_args, threads, 40);
DFQ_SIZE(dfq_pack_args, 48);
DFQ_API int dfq_pack(const struct dfq_pack_args* args);

// The inverse of dfq_pack.
struct dfq_unpack_args {
  const uint8_t* packed;
  int64_t n;
  int64_t k;
  int64_t bits;
  uint8_t* codes;
  int64_t threads;
};
DFQ_AT(dfq_unpack_args, packed, 0); DFQ_AT(dfq_unpack_args, n, 8); DFQ_AT(dfq_unpack_args, k, 16);
DFQ_AT(dfq_unpack_args, bits, 24); DFQ_AT(dfq_unpack_args, codes, 32); DFQ_AT(dfq_unpack_args, threads, 40);
DFQ_SIZE(dfq_unpack_args, 48);
DFQ_API int dfq_unpack(const struct dfq_unpack_args* args);

// x [m, k] -> codes [m, k], scale [m], zero [m]: x = scale * (q - zero). A row with NaN or Inf: scale NaN, codes 0.
struct dfq_quantize_per_token_args {
  const void* x;
  int64_t dtype;
  int64_t m;
  int64_t k;
  int64_t bits;
  int64_t symmetric;
  double clip;
  int8_t* codes;
  float* scale;
  int32_t* zero;
  int64_t threads;
};
DFQ_AT(dfq_quantize_per_token_args, x, 0); DFQ_AT(dfq_quantize_per_token_args, dtype, 8);
DFQ_AT(dfq_quantize_per_token_args, m, 16); DFQ_AT(dfq_quantize_per_token_args, k, 24);
DFQ_AT(dfq_quantize_per_token_args, bits, 32); DFQ_AT(dfq_quantize_per_token_args, symmetric, 40);
DFQ_AT(dfq_quantize_per_token_args, clip, 48); DFQ_AT(dfq_quantize_per_token_args, codes, 56);
DFQ_AT(dfq_quantize_per_token_args, scale, 64); DFQ_AT(dfq_quantize_per_token_args, zero, 72);
DFQ_AT(dfq_quantize_per_token_args, threads, 80); DFQ_SIZE(dfq_quantize_per_token_args, 88);
DFQ_API int dfq_quantize_per_token(const struct dfq_quantize_per_token_args* args);

// out = x (base (x) Sylvester(block / order)) / sqrt(block) for each of `rows` rows of `block` values.
struct dfq_hadamard_args {
  const void* x;
  int64_t dtype;
  int64_t rows;
  int64_t block;
  const float* base;
  int64_t order;
  void* out;
  int64_t threads;
};
DFQ_AT(dfq_hadamard_args, x, 0); DFQ_AT(dfq_hadamard_args, dtype, 8); DFQ_AT(dfq_hadamard_args, rows, 16);
DFQ_AT(dfq_hadamard_args, block, 24); DFQ_AT(dfq_hadamard_args, base, 32); DFQ_AT(dfq_hadamard_args, order, 40);
DFQ_AT(dfq_hadamard_args, out, 48); DFQ_AT(dfq_hadamard_args, threads, 56); DFQ_SIZE(dfq_hadamard_args, 64);
DFQ_API int dfq_hadamard(const struct dfq_hadamard_args* args);

// Each row of x [rows, width] -> packed unsigned codes, float16 scale, zero (2^(bits-1) when symmetric).
struct dfq_kv_quantize_args {
  const void* x;
  int64_t dtype;
  int64_t rows;
  int64_t width;
  int64_t bits;
  int64_t symmetric;
  double clip;
  uint8_t* packed;
  uint16_t* scale;
  uint8_t* zero;
  int64_t threads;
};
DFQ_AT(dfq_kv_quantize_args, x, 0); DFQ_AT(dfq_kv_quantize_args, dtype, 8); DFQ_AT(dfq_kv_quantize_args, rows, 16);
DFQ_AT(dfq_kv_quantize_args, width, 24); DFQ_AT(dfq_kv_quantize_args, bits, 32);
DFQ_AT(dfq_kv_quantize_args, symmetric, 40); DFQ_AT(dfq_kv_quantize_args, clip, 48);
DFQ_AT(dfq_kv_quantize_args, packed, 56); DFQ_AT(dfq_kv_quantize_args, scale, 64);
DFQ_AT(dfq_kv_quantize_args, zero, 72); DFQ_AT(dfq_kv_quantize_args, threads, 80); DFQ_SIZE(dfq_kv_quantize_args, 88);
DFQ_API int dfq_kv_quantize(const struct dfq_kv_quantize_args* args);

// The inverse of dfq_kv_quantize up to rounding; zero null: 2^(bits-1).
struct dfq_kv_dequantize_args {
  const uint8_t* packed;
  const uint16_t* scale;
  const uint8_t* zero;  // or null
  int64_t rows;
  int64_t width;
  int64_t bits;
  int64_t dtype;
  void* out;
  int64_t threads;
};
DFQ_AT(dfq_kv_dequantize_args, packed, 0); DFQ_AT(dfq_kv_dequantize_args, scale, 8);
DFQ_AT(dfq_kv_dequantize_args, zero, 16); DFQ_AT(dfq_kv_dequantize_args, rows, 24);
DFQ_AT(dfq_kv_dequantize_args, width, 32); DFQ_AT(dfq_kv_dequantize_args, bits, 40);
DFQ_AT(dfq_kv_dequantize_args, dtype, 48); DFQ_AT(dfq_kv_dequantize_args, out, 56);
DFQ_AT(dfq_kv_dequantize_args, threads, 64); DFQ_SIZE(dfq_kv_dequantize_args, 72);
DFQ_API int dfq_kv_dequantize(const struct dfq_kv_dequantize_args* args);

// Codes as dfq_quantize_per_token gives them, of rows that are rotated first. base null: no transform, else [order,
// order] of the Hadamard transform in blocks of `block`, computed in float32 and not rounded.
struct dfq_hadamard_quantize_args {
  const void* x;
  int64_t dtype;
  int64_t m;
  int64_t k;
  const float* base;  // or null
  int64_t order;
  int64_t block;
  int64_t bits;
  int64_t symmetric;
  double clip;
  int8_t* codes;
  float* scale;
  int32_t* zero;
  int64_t threads;
};
DFQ_AT(dfq_hadamard_quantize_args, x, 0); DFQ_AT(dfq_hadamard_quantize_args, dtype, 8);
DFQ_AT(dfq_hadamard_quantize_args, m, 16); DFQ_AT(dfq_hadamard_quantize_args, k, 24);
DFQ_AT(dfq_hadamard_quantize_args, base, 32); DFQ_AT(dfq_hadamard_quantize_args, order, 40);
DFQ_AT(dfq_hadamard_quantize_args, block, 48); DFQ_AT(dfq_hadamard_quantize_args, bits, 56);
DFQ_AT(dfq_hadamard_quantize_args, symmetric, 64); DFQ_AT(dfq_hadamard_quantize_args, clip, 72);
DFQ_AT(dfq_hadamard_quantize_args, codes, 80); DFQ_AT(dfq_hadamard_quantize_args, scale, 88);
DFQ_AT(dfq_hadamard_quantize_args, zero, 96); DFQ_AT(dfq_hadamard_quantize_args, threads, 104);
DFQ_SIZE(dfq_hadamard_quantize_args, 112);
DFQ_API int dfq_hadamard_quantize(const struct dfq_hadamard_quantize_args* args);

// Codes of residual += x (residual null: x), divided by its root mean square, times weight [k] (null: 1); every step
// is rounded to dtype, the type of x, residual and weight.
struct dfq_rmsnorm_quantize_args {
  const void* x;
  int64_t dtype;
  int64_t m;
  int64_t k;
  void* residual;  // or null
  const void* weight;  // or null
  double epsilon;
  int64_t bits;
  int64_t symmetric;
  double clip;
  int8_t* codes;
  float* scale;
  int32_t* zero;
  int64_t threads;
};
DFQ_AT(dfq_rmsnorm_quantize_args, x, 0); DFQ_AT(dfq_rmsnorm_quantize_args, dtype, 8);
DFQ_AT(dfq_rmsnorm_quantize_args, m, 16); DFQ_AT(dfq_rmsnorm_quantize_args, k, 24);
DFQ_AT(dfq_rmsnorm_quantize_args, residual, 32); DFQ_AT(dfq_rmsnorm_quantize_args, weight, 40);
DFQ_AT(dfq_rmsnorm_quantize_args, epsilon, 48); DFQ_AT(dfq_rmsnorm_quantize_args, bits, 56);
DFQ_AT(dfq_rmsnorm_quantize_args, symmetric, 64); DFQ_AT(dfq_rmsnorm_quantize_args, clip, 72);
DFQ_AT(dfq_rmsnorm_quantize_args, codes, 80); DFQ_AT(dfq_rmsnorm_quantize_args, scale, 88);
DFQ_AT(dfq_rmsnorm_quantize_args, zero, 96); DFQ_AT(dfq_rmsnorm_quantize_args, threads, 104);
DFQ_SIZE(dfq_rmsnorm_quantize_args, 112);
DFQ_API int dfq_rmsnorm_quantize(const struct dfq_rmsnorm_quantize_args* args);

// Codes of silu(gate) * up, both [m, k], rounded to dtype after each of the two steps, rotated as in
// dfq_hadamard_quantize.
struct dfq_silu_mul_hadamard_quantize_args {
  const void* gate;
  const void* up;
  int64_t dtype;
  int64_t m;
  int64_t k;
  const float* base;  // or null
  int64_t order;
  int64_t block;
  int64_t bits;
  int64_t symmetric;
  double clip;
  int8_t* codes;
  float* scale;
  int32_t* zero;
  int64_t threads;
};
DFQ_AT(dfq_silu_mul_hadamard_quantize_args, gate, 0); DFQ_AT(dfq_silu_mul_hadamard_quantize_args, up, 8);
DFQ_AT(dfq_silu_mul_hadamard_quantize_args, dtype, 16); DFQ_AT(dfq_silu_mul_hadamard_quantize_args, m, 24);
DFQ_AT(dfq_silu_mul_hadamard_quantize_args, k, 32); DFQ_AT(dfq_silu_mul_hadamard_quantize_args, base, 40);
DFQ_AT(dfq_silu_mul_hadamard_quantize_args, order, 48); DFQ_AT(dfq_silu_mul_hadamard_quantize_args, block, 56);
DFQ_AT(dfq_silu_mul_hadamard_quantize_args, bits, 64); DFQ_AT(dfq_silu_mul_hadamard_quantize_args, symmetric, 72);
DFQ_AT(dfq_silu_mul_hadamard_quantize_args, clip, 80); DFQ_AT(dfq_silu_mul_hadamard_quantize_args, codes, 88);
DFQ_AT(dfq_silu_mul_hadamard_quantize_args, scale, 96); DFQ_AT(dfq_silu_mul_hadamard_quantize_args, zero, 104);
DFQ_AT(dfq_silu_mul_hadamard_quantize_args, threads, 112); DFQ_SIZE(dfq_silu_mul_hadamard_quantize_args, 120);
DFQ_API int dfq_silu_mul_hadamard_quantize(const struct dfq_silu_mul_hadamard_quantize_args* args);

// w[n, k] = scale * (u - zero): scale bfloat16 bits [n, groups], zero [n, groups] or null (2^(bits-1)); group:
// columns per scale, 0 = one scale per row.
struct dfq_dequantize_args {
  const uint8_t* packed;
  const uint16_t* scale;
  const uint8_t* zero;  // or null
  int64_t n;
  int64_t k;
  int64_t bits;
  int64_t group;
  float* w;
  int64_t threads;
};
DFQ_AT(dfq_dequantize_args, packed, 0); DFQ_AT(dfq_dequantize_args, scale, 8); DFQ_AT(dfq_dequantize_args, zero, 16);
DFQ_AT(dfq_dequantize_args, n, 24); DFQ_AT(dfq_dequantize_args, k, 32); DFQ_AT(dfq_dequantize_args, bits, 40);
DFQ_AT(dfq_dequantize_args, group, 48); DFQ_AT(dfq_dequantize_args, w, 56); DFQ_AT(dfq_dequantize_args, threads, 64);
DFQ_SIZE(dfq_dequantize_args, 72);
DFQ_API int dfq_dequantize(const struct dfq_dequantize_args* args);

// out [m, n] = x [m, k] w[n, k]^T with 4-bit w as in dfq_dequantize; float32 sums; out has the dtype of x.
struct dfq_w4a16_mm_args {
  const void* x;
  int64_t dtype;
  int64_t m;
  int64_t n;
  int64_t k;
  const uint8_t* packed;
  const uint16_t* scale;
  const uint8_t* zero;  // or null
  int64_t group;
  void* out;
  int64_t threads;
};
DFQ_AT(dfq_w4a16_mm_args, x, 0); DFQ_AT(dfq_w4a16_mm_args, dtype, 8); DFQ_AT(dfq_w4a16_mm_args, m, 16);
DFQ_AT(dfq_w4a16_mm_args, n, 24); DFQ_AT(dfq_w4a16_mm_args, k, 32); DFQ_AT(dfq_w4a16_mm_args, packed, 40);
DFQ_AT(dfq_w4a16_mm_args, scale, 48); DFQ_AT(dfq_w4a16_mm_args, zero, 56); DFQ_AT(dfq_w4a16_mm_args, group, 64);
DFQ_AT(dfq_w4a16_mm_args, out, 72); DFQ_AT(dfq_w4a16_mm_args, threads, 80); DFQ_SIZE(dfq_w4a16_mm_args, 88);
DFQ_API int dfq_w4a16_mm(const struct dfq_w4a16_mm_args* args);

// out[m, n] = x_scale[m] sum_g scale[n, g] sum_{k in g} (q[m, k] - x_zero[m]) (u[n, k] - zero[n, g]): exact integer
// sums per group, groups added in order; k at most 2^19. The range of q is measured: narrow codes are multiplied
// faster, whatever their nominal width.
struct dfq_w4a8_mm_args {
  const int8_t* q;
  const float* x_scale;
  const int32_t* x_zero;
  int64_t m;
  int64_t n;
  int64_t k;
  const uint8_t* packed;
  const uint16_t* scale;
  const uint8_t* zero;  // or null
  int64_t group;
  float* out;
  int64_t threads;
};
DFQ_AT(dfq_w4a8_mm_args, q, 0); DFQ_AT(dfq_w4a8_mm_args, x_scale, 8); DFQ_AT(dfq_w4a8_mm_args, x_zero, 16);
DFQ_AT(dfq_w4a8_mm_args, m, 24); DFQ_AT(dfq_w4a8_mm_args, n, 32); DFQ_AT(dfq_w4a8_mm_args, k, 40);
DFQ_AT(dfq_w4a8_mm_args, packed, 48); DFQ_AT(dfq_w4a8_mm_args, scale, 56); DFQ_AT(dfq_w4a8_mm_args, zero, 64);
DFQ_AT(dfq_w4a8_mm_args, group, 72); DFQ_AT(dfq_w4a8_mm_args, out, 80); DFQ_AT(dfq_w4a8_mm_args, threads, 88);
DFQ_SIZE(dfq_w4a8_mm_args, 96);
DFQ_API int dfq_w4a8_mm(const struct dfq_w4a8_mm_args* args);

// packed [n, ceil(k / 2)] -> tiles [n16 / 16, k8 / 8, 64] (cpu/tile16/tile16_kernels.h) and, unless null, sums
// [groups, n16] of the codes of each group. n16: n rounded up to 16, k8: k rounded up to 8.
struct dfq_prepack_args {
  const uint8_t* packed;
  int64_t n;
  int64_t k;
  int64_t group;
  uint8_t* tiles;
  int32_t* sums;  // or null
  int64_t threads;
};
DFQ_AT(dfq_prepack_args, packed, 0); DFQ_AT(dfq_prepack_args, n, 8); DFQ_AT(dfq_prepack_args, k, 16);
DFQ_AT(dfq_prepack_args, group, 24); DFQ_AT(dfq_prepack_args, tiles, 32); DFQ_AT(dfq_prepack_args, sums, 40);
DFQ_AT(dfq_prepack_args, threads, 48); DFQ_SIZE(dfq_prepack_args, 56);
DFQ_API int dfq_prepack(const struct dfq_prepack_args* args);

// The inverse of dfq_prepack.
struct dfq_unprepack_args {
  const uint8_t* tiles;
  int64_t n;
  int64_t k;
  uint8_t* packed;
  int64_t threads;
};
DFQ_AT(dfq_unprepack_args, tiles, 0); DFQ_AT(dfq_unprepack_args, n, 8); DFQ_AT(dfq_unprepack_args, k, 16);
DFQ_AT(dfq_unprepack_args, packed, 24); DFQ_AT(dfq_unprepack_args, threads, 32); DFQ_SIZE(dfq_unprepack_args, 40);
DFQ_API int dfq_unprepack(const struct dfq_unprepack_args* args);

// out [m, n] = x [m, k] w[n, k]^T + bias [n]: float32 sums, cast once to the dtype of x. scale bfloat16 bits [groups,
// n16], zero [groups, n16] or null (8); group: a multiple of 8, 0 = one scale per row; k at most 2^19.
struct dfq_tiled_w4a16_args {
  const void* x;
  int64_t dtype;
  int64_t m;
  int64_t n;
  int64_t k;
  const uint8_t* tiles;
  const uint16_t* scale;
  const uint8_t* zero;  // or null
  int64_t group;
  const float* bias;  // or null
  void* out;
  int64_t threads;
};
DFQ_AT(dfq_tiled_w4a16_args, x, 0); DFQ_AT(dfq_tiled_w4a16_args, dtype, 8); DFQ_AT(dfq_tiled_w4a16_args, m, 16);
DFQ_AT(dfq_tiled_w4a16_args, n, 24); DFQ_AT(dfq_tiled_w4a16_args, k, 32); DFQ_AT(dfq_tiled_w4a16_args, tiles, 40);
DFQ_AT(dfq_tiled_w4a16_args, scale, 48); DFQ_AT(dfq_tiled_w4a16_args, zero, 56);
DFQ_AT(dfq_tiled_w4a16_args, group, 64); DFQ_AT(dfq_tiled_w4a16_args, bias, 72);
DFQ_AT(dfq_tiled_w4a16_args, out, 80); DFQ_AT(dfq_tiled_w4a16_args, threads, 88); DFQ_SIZE(dfq_tiled_w4a16_args, 96);
DFQ_API int dfq_tiled_w4a16(const struct dfq_tiled_w4a16_args* args);

// out[m, n] of `dtype` = the float32 of dfq_w4a8_mm + bias, cast once. x_zero null: 0; otherwise sums must be given.
// Weights as in dfq_tiled_w4a16.
struct dfq_tiled_w4a8_args {
  const int8_t* q;
  const float* x_scale;
  const int32_t* x_zero;  // or null
  int64_t m;
  int64_t n;
  int64_t k;
  const uint8_t* tiles;
  const uint16_t* scale;
  const uint8_t* zero;  // or null
  const int32_t* sums;  // or null
  int64_t group;
  const float* bias;  // or null
  int64_t dtype;
  void* out;
  int64_t threads;
};
DFQ_AT(dfq_tiled_w4a8_args, q, 0); DFQ_AT(dfq_tiled_w4a8_args, x_scale, 8); DFQ_AT(dfq_tiled_w4a8_args, x_zero, 16);
DFQ_AT(dfq_tiled_w4a8_args, m, 24); DFQ_AT(dfq_tiled_w4a8_args, n, 32); DFQ_AT(dfq_tiled_w4a8_args, k, 40);
DFQ_AT(dfq_tiled_w4a8_args, tiles, 48); DFQ_AT(dfq_tiled_w4a8_args, scale, 56); DFQ_AT(dfq_tiled_w4a8_args, zero, 64);
DFQ_AT(dfq_tiled_w4a8_args, sums, 72); DFQ_AT(dfq_tiled_w4a8_args, group, 80); DFQ_AT(dfq_tiled_w4a8_args, bias, 88);
DFQ_AT(dfq_tiled_w4a8_args, dtype, 96); DFQ_AT(dfq_tiled_w4a8_args, out, 104);
DFQ_AT(dfq_tiled_w4a8_args, threads, 112); DFQ_SIZE(dfq_tiled_w4a8_args, 120);
DFQ_API int dfq_tiled_w4a8(const struct dfq_tiled_w4a8_args* args);

// out [m, n] = x [m, k] w[n, k]^T, both of `dtype`; float32 sums, and every row has the bits that it has alone. w is
// of float32 or bfloat16 like x (kind: dtype), or one byte a code (kind: DFQ_CODES8) with zero point 128 and scale
// bfloat16 [n, groups]; group: columns per scale, a multiple of 16, 0 = one scale per row. For a few rows: the weight
// is read once for every 16 of them.
struct dfq_dense_args {
  const void* x;
  int64_t dtype;
  int64_t m;
  int64_t n;
  int64_t k;
  const void* weight;
  int64_t kind;
  const uint16_t* scale;  // or null
  int64_t group;
  void* out;
  int64_t threads;
};
DFQ_AT(dfq_dense_args, x, 0); DFQ_AT(dfq_dense_args, dtype, 8); DFQ_AT(dfq_dense_args, m, 16);
DFQ_AT(dfq_dense_args, n, 24); DFQ_AT(dfq_dense_args, k, 32); DFQ_AT(dfq_dense_args, weight, 40);
DFQ_AT(dfq_dense_args, kind, 48); DFQ_AT(dfq_dense_args, scale, 56); DFQ_AT(dfq_dense_args, group, 64);
DFQ_AT(dfq_dense_args, out, 72); DFQ_AT(dfq_dense_args, threads, 80); DFQ_SIZE(dfq_dense_args, 88);
DFQ_API int dfq_dense(const struct dfq_dense_args* args);

// key [batch, rows, heads, k_dim], value [batch, rows, heads, v_dim] -> positions `position` and on of the cache of
// one layer, in place: codes [positions, batch, heads, bytes], scale and zero [positions, batch, heads] as
// dfq_kv_quantize writes them (zero null: symmetric). Keys are rotated in float32 by R3: base null, or [order, order]
// of the Hadamard transform in blocks of `block`. Then shift [heads, k_dim], if any, is subtracted from them in
// float32.
struct dfq_kv_append_args {
  const void* key;
  const void* value;
  int64_t dtype;
  int64_t batch;
  int64_t rows;
  int64_t heads;
  int64_t k_dim;
  int64_t v_dim;
  uint8_t* k_packed;
  uint16_t* k_scale;
  uint8_t* k_zero;  // or null
  uint8_t* v_packed;
  uint16_t* v_scale;
  uint8_t* v_zero;  // or null
  int64_t position;
  int64_t bits;
  int64_t symmetric;
  double clip;
  const float* base;  // or null
  int64_t order;
  int64_t block;
  const float* shift;  // or null
  int64_t threads;
};
DFQ_AT(dfq_kv_append_args, key, 0); DFQ_AT(dfq_kv_append_args, value, 8); DFQ_AT(dfq_kv_append_args, dtype, 16);
DFQ_AT(dfq_kv_append_args, batch, 24); DFQ_AT(dfq_kv_append_args, rows, 32); DFQ_AT(dfq_kv_append_args, heads, 40);
DFQ_AT(dfq_kv_append_args, k_dim, 48); DFQ_AT(dfq_kv_append_args, v_dim, 56);
DFQ_AT(dfq_kv_append_args, k_packed, 64); DFQ_AT(dfq_kv_append_args, k_scale, 72);
DFQ_AT(dfq_kv_append_args, k_zero, 80); DFQ_AT(dfq_kv_append_args, v_packed, 88);
DFQ_AT(dfq_kv_append_args, v_scale, 96); DFQ_AT(dfq_kv_append_args, v_zero, 104);
DFQ_AT(dfq_kv_append_args, position, 112); DFQ_AT(dfq_kv_append_args, bits, 120);
DFQ_AT(dfq_kv_append_args, symmetric, 128); DFQ_AT(dfq_kv_append_args, clip, 136);
DFQ_AT(dfq_kv_append_args, base, 144); DFQ_AT(dfq_kv_append_args, order, 152); DFQ_AT(dfq_kv_append_args, block, 160);
DFQ_AT(dfq_kv_append_args, shift, 168); DFQ_AT(dfq_kv_append_args, threads, 176); DFQ_SIZE(dfq_kv_append_args, 184);
DFQ_API int dfq_kv_append(const struct dfq_kv_append_args* args);

// query [batch, rows, heads, k_dim] at the last `rows` (at most 64) of `length` positions -> out [batch, rows, heads,
// v_dim] = softmax(scaling q k^T) v. Row r of sequence b sees the positions from first[b, r] (null: 0) to length -
// rows - 1, and the new ones that tree [trees, rows, rows] shows it (null: those up to itself; trees 1 or batch). The
// `sinks` positions from sink_start[b] (null: 0) on are read from k_sink, v_sink [sinks, batch, kv_heads, dim], of
// the query's dtype and rotated like the stored keys. k_dim and v_dim at most 512.
struct dfq_kv_attention_args {
  const void* query;
  int64_t dtype;
  int64_t batch;
  int64_t rows;
  int64_t heads;
  int64_t kv_heads;
  int64_t k_dim;
  int64_t v_dim;
  const uint8_t* k_packed;
  const uint16_t* k_scale;
  const uint8_t* k_zero;  // or null
  const uint8_t* v_packed;
  const uint16_t* v_scale;
  const uint8_t* v_zero;  // or null
  int64_t length;
  int64_t bits;
  double scaling;
  const float* base;  // or null
  int64_t order;
  int64_t block;
  const int64_t* first;  // or null
  const uint8_t* tree;  // or null
  int64_t trees;
  const void* k_sink;  // or null
  const void* v_sink;  // or null
  int64_t sinks;
  const int64_t* sink_start;  // or null
  void* out;
  int64_t threads;
};
DFQ_AT(dfq_kv_attention_args, query, 0); DFQ_AT(dfq_kv_attention_args, dtype, 8);
DFQ_AT(dfq_kv_attention_args, batch, 16); DFQ_AT(dfq_kv_attention_args, rows, 24);
DFQ_AT(dfq_kv_attention_args, heads, 32); DFQ_AT(dfq_kv_attention_args, kv_heads, 40);
DFQ_AT(dfq_kv_attention_args, k_dim, 48); DFQ_AT(dfq_kv_attention_args, v_dim, 56);
DFQ_AT(dfq_kv_attention_args, k_packed, 64); DFQ_AT(dfq_kv_attention_args, k_scale, 72);
DFQ_AT(dfq_kv_attention_args, k_zero, 80); DFQ_AT(dfq_kv_attention_args, v_packed, 88);
DFQ_AT(dfq_kv_attention_args, v_scale, 96); DFQ_AT(dfq_kv_attention_args, v_zero, 104);
DFQ_AT(dfq_kv_attention_args, length, 112); DFQ_AT(dfq_kv_attention_args, bits, 120);
DFQ_AT(dfq_kv_attention_args, scaling, 128); DFQ_AT(dfq_kv_attention_args, base, 136);
DFQ_AT(dfq_kv_attention_args, order, 144); DFQ_AT(dfq_kv_attention_args, block, 152);
DFQ_AT(dfq_kv_attention_args, first, 160); DFQ_AT(dfq_kv_attention_args, tree, 168);
DFQ_AT(dfq_kv_attention_args, trees, 176); DFQ_AT(dfq_kv_attention_args, k_sink, 184);
DFQ_AT(dfq_kv_attention_args, v_sink, 192); DFQ_AT(dfq_kv_attention_args, sinks, 200);
DFQ_AT(dfq_kv_attention_args, sink_start, 208); DFQ_AT(dfq_kv_attention_args, out, 216);
DFQ_AT(dfq_kv_attention_args, threads, 224); DFQ_SIZE(dfq_kv_attention_args, 232);
DFQ_API int dfq_kv_attention(const struct dfq_kv_attention_args* args);

// query [batch, rows, heads, k_dim], rotated like the stored keys, at the last `rows` (any number) of `length`
// positions -> out [batch, rows, heads, v_dim] = softmax(scaling q k^T) v. A row sees the last `window` positions up
// to its own (0: all). The first `sinks` positions are read from k_sink, v_sink [sinks, batch, kv_heads, dim], of the
// query's dtype. k_dim and v_dim at most 512.
struct dfq_prompt_attention_args {
  const void* query;
  int64_t dtype;
  int64_t batch;
  int64_t rows;
  int64_t heads;
  int64_t kv_heads;
  int64_t k_dim;
  int64_t v_dim;
  const uint8_t* k_packed;
  const uint16_t* k_scale;
  const uint8_t* k_zero;  // or null
  const uint8_t* v_packed;
  const uint16_t* v_scale;
  const uint8_t* v_zero;  // or null
  int64_t length;
  int64_t bits;
  double scaling;
  int64_t window;
  const void* k_sink;  // or null
  const void* v_sink;  // or null
  int64_t sinks;
  void* out;
  int64_t threads;
};
DFQ_AT(dfq_prompt_attention_args, query, 0); DFQ_AT(dfq_prompt_attention_args, dtype, 8);
DFQ_AT(dfq_prompt_attention_args, batch, 16); DFQ_AT(dfq_prompt_attention_args, rows, 24);
DFQ_AT(dfq_prompt_attention_args, heads, 32); DFQ_AT(dfq_prompt_attention_args, kv_heads, 40);
DFQ_AT(dfq_prompt_attention_args, k_dim, 48); DFQ_AT(dfq_prompt_attention_args, v_dim, 56);
DFQ_AT(dfq_prompt_attention_args, k_packed, 64); DFQ_AT(dfq_prompt_attention_args, k_scale, 72);
DFQ_AT(dfq_prompt_attention_args, k_zero, 80); DFQ_AT(dfq_prompt_attention_args, v_packed, 88);
DFQ_AT(dfq_prompt_attention_args, v_scale, 96); DFQ_AT(dfq_prompt_attention_args, v_zero, 104);
DFQ_AT(dfq_prompt_attention_args, length, 112); DFQ_AT(dfq_prompt_attention_args, bits, 120);
DFQ_AT(dfq_prompt_attention_args, scaling, 128); DFQ_AT(dfq_prompt_attention_args, window, 136);
DFQ_AT(dfq_prompt_attention_args, k_sink, 144); DFQ_AT(dfq_prompt_attention_args, v_sink, 152);
DFQ_AT(dfq_prompt_attention_args, sinks, 160); DFQ_AT(dfq_prompt_attention_args, out, 168);
DFQ_AT(dfq_prompt_attention_args, threads, 176); DFQ_SIZE(dfq_prompt_attention_args, 184);
DFQ_API int dfq_prompt_attention(const struct dfq_prompt_attention_args* args);

// All blocks for a few positions of a few sequences. hidden [batch, rows, hidden] of the model's dtype: the
// embeddings of the tokens at `position` and on -> out, of the same shape and dtype, after the final norm. caches
// [layers] have room for position + rows positions. cos, sin [rows, head_dim]. batch * rows at most 16. states
// [layers, batch, rows, hidden] of that dtype: the residual stream behind every block; null: not wanted.
struct dfq_decode_args {
  const struct dfq_decoder* model;
  const struct dfq_cache* caches;
  const void* hidden;
  const float* cos;
  const float* sin;
  int64_t batch;
  int64_t rows;
  int64_t position;
  void* out;
  void* states;  // or null
  int64_t threads;
};
DFQ_AT(dfq_decode_args, model, 0); DFQ_AT(dfq_decode_args, caches, 8); DFQ_AT(dfq_decode_args, hidden, 16);
DFQ_AT(dfq_decode_args, cos, 24); DFQ_AT(dfq_decode_args, sin, 32); DFQ_AT(dfq_decode_args, batch, 40);
DFQ_AT(dfq_decode_args, rows, 48); DFQ_AT(dfq_decode_args, position, 56); DFQ_AT(dfq_decode_args, out, 64);
DFQ_AT(dfq_decode_args, states, 72); DFQ_AT(dfq_decode_args, threads, 80); DFQ_SIZE(dfq_decode_args, 88);
DFQ_API int dfq_decode(const struct dfq_decode_args* args);

// dfq_decode for a tree of tokens of one sequence: parents [rows] (-1: none; else below the node's own number) in
// place of one behind the other, cos and sin of position + depth. Every row comes out as if its ancestors alone
// preceded it, to the last bit; the caches hold node i at position + i.
struct dfq_decode_tree_args {
  const struct dfq_decoder* model;
  const struct dfq_cache* caches;
  const void* hidden;
  const float* cos;
  const float* sin;
  int64_t rows;
  int64_t position;
  const int64_t* parents;
  void* out;
  void* states;  // or null
  int64_t threads;
};
DFQ_AT(dfq_decode_tree_args, model, 0); DFQ_AT(dfq_decode_tree_args, caches, 8);
DFQ_AT(dfq_decode_tree_args, hidden, 16); DFQ_AT(dfq_decode_tree_args, cos, 24);
DFQ_AT(dfq_decode_tree_args, sin, 32); DFQ_AT(dfq_decode_tree_args, rows, 40);
DFQ_AT(dfq_decode_tree_args, position, 48); DFQ_AT(dfq_decode_tree_args, parents, 56);
DFQ_AT(dfq_decode_tree_args, out, 64); DFQ_AT(dfq_decode_tree_args, states, 72);
DFQ_AT(dfq_decode_tree_args, threads, 80); DFQ_SIZE(dfq_decode_tree_args, 88);
DFQ_API int dfq_decode_tree(const struct dfq_decode_tree_args* args);

// dfq_decode for one position each of several sequences: hidden [lines, hidden], the embedding of the token at
// positions[i] of sequence i -> out, every line as if it were alone, to the last bit. caches [lines, layers] of one
// sequence each, with room for positions[i] + 1 positions; positions are at least the model's sinks. cos, sin [lines,
// head_dim]. lines at most 16.
struct dfq_decode_batch_args {
  const struct dfq_decoder* model;
  const struct dfq_cache* caches;
  const void* hidden;
  const float* cos;
  const float* sin;
  const int64_t* positions;
  int64_t lines;
  void* out;
  int64_t threads;
};
DFQ_AT(dfq_decode_batch_args, model, 0); DFQ_AT(dfq_decode_batch_args, caches, 8);
DFQ_AT(dfq_decode_batch_args, hidden, 16); DFQ_AT(dfq_decode_batch_args, cos, 24);
DFQ_AT(dfq_decode_batch_args, sin, 32); DFQ_AT(dfq_decode_batch_args, positions, 40);
DFQ_AT(dfq_decode_batch_args, lines, 48); DFQ_AT(dfq_decode_batch_args, out, 56);
DFQ_AT(dfq_decode_batch_args, threads, 64); DFQ_SIZE(dfq_decode_batch_args, 72);
DFQ_API int dfq_decode_batch(const struct dfq_decode_batch_args* args);

// The first half of one block for many positions (a prompt), before an attention that the caller computes: hidden
// [batch, rows, hidden] -> query [batch, rows, heads, head_dim], rotated by RoPE and, if `rotate`, by R3; keys and
// values go to the cache.
struct dfq_prefill_before_args {
  const struct dfq_decoder* model;
  int64_t layer;
  const struct dfq_cache* caches;
  const void* hidden;
  const float* cos;
  const float* sin;
  int64_t batch;
  int64_t rows;
  int64_t position;
  int64_t rotate;
  void* query;
  int64_t threads;
};
DFQ_AT(dfq_prefill_before_args, model, 0); DFQ_AT(dfq_prefill_before_args, layer, 8);
DFQ_AT(dfq_prefill_before_args, caches, 16); DFQ_AT(dfq_prefill_before_args, hidden, 24);
DFQ_AT(dfq_prefill_before_args, cos, 32); DFQ_AT(dfq_prefill_before_args, sin, 40);
DFQ_AT(dfq_prefill_before_args, batch, 48); DFQ_AT(dfq_prefill_before_args, rows, 56);
DFQ_AT(dfq_prefill_before_args, position, 64); DFQ_AT(dfq_prefill_before_args, rotate, 72);
DFQ_AT(dfq_prefill_before_args, query, 80); DFQ_AT(dfq_prefill_before_args, threads, 88);
DFQ_SIZE(dfq_prefill_before_args, 96);
DFQ_API int dfq_prefill_before(const struct dfq_prefill_before_args* args);

// The second half: mixed [lines, heads * head_dim], the attention's result; hidden [lines, hidden] is updated in
// place.
struct dfq_prefill_after_args {
  const struct dfq_decoder* model;
  int64_t layer;
  void* hidden;
  const void* mixed;
  int64_t lines;
  int64_t threads;
};
DFQ_AT(dfq_prefill_after_args, model, 0); DFQ_AT(dfq_prefill_after_args, layer, 8);
DFQ_AT(dfq_prefill_after_args, hidden, 16); DFQ_AT(dfq_prefill_after_args, mixed, 24);
DFQ_AT(dfq_prefill_after_args, lines, 32); DFQ_AT(dfq_prefill_after_args, threads, 40);
DFQ_SIZE(dfq_prefill_after_args, 48);
DFQ_API int dfq_prefill_after(const struct dfq_prefill_after_args* args);

// x [lines, hidden] in place: the norm after the last block.
struct dfq_prefill_norm_args {
  const struct dfq_decoder* model;
  void* x;
  int64_t lines;
  int64_t threads;
};
DFQ_AT(dfq_prefill_norm_args, model, 0); DFQ_AT(dfq_prefill_norm_args, x, 8);
DFQ_AT(dfq_prefill_norm_args, lines, 16); DFQ_AT(dfq_prefill_norm_args, threads, 24);
DFQ_SIZE(dfq_prefill_norm_args, 32);
DFQ_API int dfq_prefill_norm(const struct dfq_prefill_norm_args* args);

// One pass of a draft over a few new slots: self-attention blocks, gated cross-attention to features, gated MLPs,
// residuals. x [rows, hidden], slots at `positions` [rows] (rows of cos and sin [.., head_dim]) -> out [rows,
// hidden], after the final norm if there is one. stream [rows, hidden]: where the residual stream of a draft with a
// side_norm begins (others begin at x), or what a block that joins adds; such drafts need it, for others null. rows
// and news at most 16, together with what is in the buffers within their capacity. Self blocks: the rows' keys go to
// buffer rows from `at` on; a slot sees the buffer rows below `verified`, and of those from there to at + rows the
// ones that tree [rows, at + rows - verified] shows it (null: all). Cross blocks: fresh [news, hidden] become keys
// from buffer row `cross_at` on. Row 0 is the null key, always visible; rows 1 .. features are those of positions 0
// .. features - 1, visible to slots of larger positions; the `drafted` ones behind them have positions `places` and
// are visible where cross_tree [rows, drafted] says so (null: everywhere).
struct dfq_draft_pass_args {
  const struct dfq_draft* draft;
  const struct dfq_draft_buffer* buffers;
  const void* x;
  const void* stream;  // or null
  int64_t rows;
  const void* fresh;  // or null
  int64_t news;
  const float* cos;
  const float* sin;
  const int64_t* positions;
  int64_t at;
  int64_t verified;
  const uint8_t* tree;  // or null
  int64_t cross_at;
  int64_t features;
  int64_t drafted;
  const int64_t* places;  // or null
  const uint8_t* cross_tree;  // or null
  void* out;
  int64_t threads;
};
DFQ_AT(dfq_draft_pass_args, draft, 0); DFQ_AT(dfq_draft_pass_args, buffers, 8); DFQ_AT(dfq_draft_pass_args, x, 16);
DFQ_AT(dfq_draft_pass_args, stream, 24); DFQ_AT(dfq_draft_pass_args, rows, 32);
DFQ_AT(dfq_draft_pass_args, fresh, 40); DFQ_AT(dfq_draft_pass_args, news, 48); DFQ_AT(dfq_draft_pass_args, cos, 56);
DFQ_AT(dfq_draft_pass_args, sin, 64); DFQ_AT(dfq_draft_pass_args, positions, 72); DFQ_AT(dfq_draft_pass_args, at, 80);
DFQ_AT(dfq_draft_pass_args, verified, 88); DFQ_AT(dfq_draft_pass_args, tree, 96);
DFQ_AT(dfq_draft_pass_args, cross_at, 104); DFQ_AT(dfq_draft_pass_args, features, 112);
DFQ_AT(dfq_draft_pass_args, drafted, 120); DFQ_AT(dfq_draft_pass_args, places, 128);
DFQ_AT(dfq_draft_pass_args, cross_tree, 136); DFQ_AT(dfq_draft_pass_args, out, 144);
DFQ_AT(dfq_draft_pass_args, threads, 152); DFQ_SIZE(dfq_draft_pass_args, 160);
DFQ_API int dfq_draft_pass(const struct dfq_draft_pass_args* args);

#undef DFQ_ASSERT
#undef DFQ_AT
#undef DFQ_SIZE

#ifdef __cplusplus
}
#endif
