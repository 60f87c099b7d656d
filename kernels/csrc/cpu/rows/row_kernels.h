// What one instruction set provides, and the thread pool. The functions compute ranges of rows or one tile of a
// product; memory and threads belong to dispatch.cpp. Nothing here is a template or inline function with external
// linkage: the linker keeps one copy of such code, which could be the copy compiled for a newer processor.
#pragma once
#include <cstdint>

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

struct Kernels {
  void (*pack_rows)(const uint8_t* codes, int64_t k, int bits, uint8_t* packed, int64_t begin, int64_t end);
  void (*unpack_rows)(const uint8_t* packed, int64_t k, int bits, uint8_t* codes, int64_t begin, int64_t end);
  void (*dequantize_rows)(const Weight& weight, int bits, float* out, int64_t begin, int64_t end);
  void (*quantize_rows)(const void* x, int type, int64_t k, int bits, bool symmetric, float clip, int8_t* codes,
                        float* scale, int32_t* zero, int64_t begin, int64_t end);
  // scratch: 2 * block floats; base_t: the transposed base
  void (*hadamard_rows)(const void* x, int type, int64_t block, const float* base_t, int64_t order, void* out,
                        float* scratch, int64_t begin, int64_t end);
  void (*kv_quantize_rows)(const void* x, int type, int64_t width, int bits, bool symmetric, float clip,
                           uint8_t* packed, uint16_t* scale, uint8_t* zero, int64_t begin, int64_t end);
  void (*kv_dequantize_rows)(const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t width, int bits,
                             int type, void* out, int64_t begin, int64_t end);
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

extern const Kernels scalar_kernels;
#ifdef DFQ_HAVE_AVX2
extern const Kernels avx2_kernels;
#endif
#ifdef DFQ_HAVE_NEON
extern const Kernels neon_kernels;
#endif
#ifdef DFQ_HAVE_DOTPROD
extern const Kernels dotprod_kernels;
#endif

const Kernels& kernels();  // of the instruction set in use

// Calls body(context, chunk) for chunk = 0 .. chunks - 1 on up to `threads` threads. Which thread takes which chunk
// never changes a result: chunks write disjoint outputs and no sum crosses a chunk.
void parallel(int64_t chunks, int64_t threads, void (*body)(void*, int64_t), void* context);

// Calls body(context, index, size) for index = 0 .. size - 1, all at the same time on `size` threads: they may wait for
// one another. `size` is `threads`, or less where there are not so many.
void together(int64_t threads, void (*body)(void*, int64_t, int64_t), void* context);

}  // namespace dfq
