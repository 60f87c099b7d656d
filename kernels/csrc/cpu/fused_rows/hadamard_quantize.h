// Transform and quantization of a row with the kernels of the instruction set in use.
#pragma once
#include <cstdint>

#include "common/convert.h"
#include "common/isa.h"
#include "common/kernels.h"
#include "dfq_abi.h"
#include "fused_rows/fused_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

void hadamard_quantize_rows(const void* x, int type, int64_t k, const TransposedHadamard& hadamard,
                            const Quantized& out, float* row, int64_t begin, int64_t end) {
  const RowKernels& use = kernels().rows;
  for (int64_t r = begin; r < end; ++r) {
    load_floats(x, type, r * k, k, row);
    if (hadamard.base_t) {
      use.hadamard_rows(row, DFQ_FLOAT32, hadamard.block, hadamard.base_t, hadamard.order, row, row + k, 0,
                        k / hadamard.block);
    }
    use.quantize_rows(row, DFQ_FLOAT32, k, out.bits, out.symmetric, out.clip, out.codes + r * k, out.scale + r,
                      out.zero + r, 0, 1);
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
