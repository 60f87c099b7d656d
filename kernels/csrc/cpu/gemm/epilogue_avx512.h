// Sums of bytes and the outputs of a block, with AVX-512.
#pragma once
#include <cstdint>

#include "common/integers.h"
#include "common/isa.h"
#include "common/simd_avx512.h"
#include "dfq_abi.h"
#include "gemm/gemm_kernels.h"
#include "gemm/vectors_avx512.h"

namespace dfq::DFQ_ISA {
namespace {

int32_t sum_bytes(const int8_t* q, int64_t count) {
  __m512i sum = _mm512_setzero_si512();
  const __m512i ones = _mm512_set1_epi8(1);
  for (int64_t j = 0; j < count; j += 64) {
    const __mmask64 mask = ~0ull >> (64 - minimum(64, count - j));
    sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8(mask, q + j));
  }
  return _mm512_reduce_add_epi32(sum);
}

// Sixteen columns of outputs, those that there are, and their bias.
struct OutputColumn {
  int64_t column;
  __mmask16 mask;
  Floats bias;
};

inline OutputColumn output_column(const GemmCall& call, int64_t column) {
  const __mmask16 mask = __mmask16((1u << minimum(LANES, call.weight->n - column)) - 1);
  const float* const bias = call.out.bias;
  return {column, mask, bias ? _mm512_maskz_loadu_ps(mask, bias + column) : _mm512_setzero_ps()};
}

// y = total * x_scale + bias of one row; x_scale null: 1.
inline void put_output(const GemmCall& call, const OutputColumn& to, int64_t row, Floats y) {
  const Tile16Out& out = call.out;
  if (call.x_scale) y = product(y, _mm512_set1_ps(call.x_scale[row]));
  if (out.bias) y = plus(y, to.bias);
  const int64_t at = row * call.weight->n + to.column;
  if (out.type == DFQ_FLOAT32) {
    _mm512_mask_storeu_ps(static_cast<float*>(out.y) + at, to.mask, y);
  } else {
    const __m256i half = out.type == DFQ_BFLOAT16 ? to_bf16(y) : _mm512_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT);
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out.y) + at, to.mask, half);
  }
}

// The same of `width` vectors of one block.
void finish(const GemmCall& call, int64_t block, int64_t column, int width, const float* totals) {
  const int64_t row = block * HEIGHT, rows = minimum(HEIGHT, call.m - row);
  for (int t = 0; t < width; ++t, column += LANES, totals += LANES) {
    const OutputColumn to = output_column(call, column);
    for (int64_t r = 0; r < rows; ++r) put_output(call, to, row + r, floats_at(totals + r * VECTORS * LANES));
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
