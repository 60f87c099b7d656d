// Fused row kernels, and the row kernels of kernels.h, with AVX-512: a row is converted, transformed and measured in few
// passes over registers, then turned into codes. The same bits as with the other instruction sets.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's own intrinsics, until 13
#endif
#include "fused_rows/fused_kernels.h"

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <utility>

#include "dfq_kernels.h"
#include "rows/row_kernels.h"

namespace dfq {
namespace {

#include "common/convert.h"

#include "fused_rows/fused_rows.h"
#include "hadamard/signs.h"
#include "hadamard/hadamard_avx512.h"
#include "rows/quantize_avx512.h"

void turn_quantize_rows(const void* x, int type, int64_t k, const Turned& turn, const Quantized& out, float* row,
                        int64_t begin, int64_t end) {
  if (!turn.base_t) {
    avx512_quantize_rows(x, type, k, out.bits, out.symmetric, out.clip, out.codes, out.scale, out.zero, begin, end);
    return;
  }
  Transform transform(turn.base_t, turn.order, turn.block);
  for (int64_t r = begin; r < end; ++r) {
    Ends ends;
    const int64_t width = size_of(type), next = r + 1 < end ? r + 1 : r;
    Ahead ahead = {static_cast<const char*>(x) + next * k * width, reinterpret_cast<const char*>(out.codes + r * k),
                   32 * width};
    for (int64_t at = 0; at < k; at += turn.block) transform.apply(x, type, r * k + at, row + at, row + k, ahead, ends);
    write_row(row, DFQ_FLOAT32, 0, k, ends, out, r);
  }
}

}  // namespace

void avx512_quantize_rows(const void* x, int type, int64_t k, int bits, bool symmetric, float clip, int8_t* codes,
                          float* scale, int32_t* zero, int64_t begin, int64_t end) {
  const Quantized out = {bits, symmetric, clip, codes, scale, zero};
  for (int64_t row = begin; row < end; ++row) {
    Ends ends;
    with_type(type, [&](auto tag) { measure<decltype(tag)::value>(x, row * k, k, ends); });
    write_row(x, type, row * k, k, ends, out, row);
  }
}

void avx512_hadamard_rows(const void* x, int type, int64_t block, const float* base_t, int64_t order, void* out,
                          float* scratch, int64_t begin, int64_t end) {
  Transform transform(base_t, order, block);
  Ends ends;
  const char* const nowhere = reinterpret_cast<const char*>(scratch);
  Ahead ahead = {nowhere, nowhere, 0};
  for (int64_t row = begin; row < end; ++row) {
    transform.apply(x, type, row * block, scratch, scratch + block, ahead, ends);
    store_floats(scratch, block, type, out, row * block);
  }
}

const FusedKernels avx512_fused = {turn_quantize_rows, norm_row, silu_mul_row};

}  // namespace dfq
