// Transform and quantization of a row with AVX-512: the transform measures the range of what it writes.
#pragma once
#include <cstdint>

#include "common/convert.h"
#include "common/isa.h"
#include "common/simd_avx512.h"
#include "dfq_abi.h"
#include "fused_rows/fused_kernels.h"
#include "hadamard/hadamard_avx512.h"
#include "rows/quantize_avx512.h"

namespace dfq::DFQ_ISA {
namespace {

void hadamard_quantize_rows(const void* x, int type, int64_t k, const TransposedHadamard& hadamard,
                            const Quantized& out, float* row, int64_t begin, int64_t end) {
  if (!hadamard.base_t) {
    quantize_rows(x, type, k, out.bits, out.symmetric, out.clip, out.codes, out.scale, out.zero, begin, end);
    return;
  }
  HadamardTransform transform(hadamard.base_t, hadamard.order, hadamard.block);
  for (int64_t r = begin; r < end; ++r) {
    RowRange range;
    const int64_t width = size_of(type), next = r + 1 < end ? r + 1 : r;
    Prefetch prefetch = {static_cast<const char*>(x) + next * k * width,
                         reinterpret_cast<const char*>(out.codes + r * k), 32 * width};
    for (int64_t at = 0; at < k; at += hadamard.block)
      transform.apply(x, type, r * k + at, row + at, row + k, prefetch, range);
    write_row(row, DFQ_FLOAT32, 0, k, range, out, r);
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
