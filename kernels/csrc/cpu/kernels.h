// What one instruction set provides: functions over a range of rows or output columns, no threads inside.
#pragma once
#include <cstdint>

namespace dfq {

struct Weight {  // packed 4-bit codes [n, ceil(k / 2)], scale bfloat16 [n, groups], zero [n, groups] or null (8)
  const uint8_t* packed;
  const uint16_t* scale;
  const uint8_t* zero;
  int64_t n, k, group, groups;
};

struct Tokens {  // int8 codes [m, stride] padded with zeros, code sums [m, groups]
  const int8_t* codes;
  const int32_t* sums;
  const float* scale;
  const int32_t* zero;
  int64_t m, stride;
};

struct Kernels {
  void (*quantize_rows)(const void* x, int type, int64_t k, int bits, bool symmetric, float clip, int8_t* codes,
                        float* scale, int32_t* zero, int64_t begin, int64_t end);
  void (*hadamard_rows)(const void* x, int type, int64_t block, const float* base, int64_t order, void* out,
                        float* scratch, int64_t begin, int64_t end);
  void (*to_float)(const void* x, int type, int64_t count, float* out);
  void (*from_float)(const float* x, int64_t count, int type, void* out);
  // output columns begin..end of x [m, k] float times the weight; scratch: (end - begin) * k floats
  void (*float_mm)(const float* x, int64_t m, const Weight& weight, float* scratch, float* out, int64_t begin,
                   int64_t end);
  // output columns begin..end; scratch: (end - begin) * stride bytes
  void (*integer_mm)(const Tokens& tokens, const Weight& weight, int a_bits, uint8_t* scratch, float* out,
                     int64_t begin, int64_t end);
  void (*kv_quantize_rows)(const void* x, int type, int64_t width, int bits, bool symmetric, float clip,
                           uint8_t* packed, uint16_t* scale, uint8_t* zero, int64_t begin, int64_t end);
  void (*kv_dequantize_rows)(const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t width, int bits,
                             int type, void* out, int64_t begin, int64_t end);
};

extern const Kernels scalar_kernels;
#ifdef DFQ_HAVE_AVX2
extern const Kernels avx2_kernels;
#endif

// Calls body(context, chunk) for chunk = 0 .. chunks - 1 on up to `threads` threads. Which thread takes which chunk
// never changes a result: chunks write disjoint outputs and no sum crosses a chunk.
void parallel(int64_t chunks, int64_t threads, void (*body)(void*, int64_t), void* context);

}  // namespace dfq
