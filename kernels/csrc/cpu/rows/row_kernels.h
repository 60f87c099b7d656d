// Work on rows: packing of codes, quantization, Hadamard transforms. What an instruction set provides; memory and
// threads belong to rows.cpp. Functions take rows begin .. end - 1.
#pragma once
#include <cstdint>

#include "common/isa.h"

namespace dfq {

struct RowKernels {
  void (*pack_rows)(const uint8_t* codes, int64_t k, int bits, uint8_t* packed, int64_t begin, int64_t end);
  void (*unpack_rows)(const uint8_t* packed, int64_t k, int bits, uint8_t* codes, int64_t begin, int64_t end);
  void (*quantize_rows)(const void* x, int type, int64_t k, int bits, bool symmetric, float clip, int8_t* codes,
                        float* scale, int32_t* zero, int64_t begin, int64_t end);
  // scratch: 2 * block floats; base_t: the transposed base
  void (*hadamard_rows)(const void* x, int type, int64_t block, const float* base_t, int64_t order, void* out,
                        float* scratch, int64_t begin, int64_t end);
  void (*kv_quantize_rows)(const void* x, int type, int64_t width, int bits, bool symmetric, float clip,
                           uint8_t* packed, uint16_t* scale, uint8_t* zero, int64_t begin, int64_t end);
  void (*kv_dequantize_rows)(const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t width, int bits,
                             int type, void* out, int64_t begin, int64_t end);
};

}  // namespace dfq

namespace dfq::DFQ_ISA {

extern const RowKernels row_table;

}  // namespace dfq::DFQ_ISA
