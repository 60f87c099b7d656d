// float_block with AVX2: totals [HEIGHT][ROW_VALUES] += rows [depth][HEIGHT] times panel [depth][ROW_VALUES], `depth`
// (1 or more) columns of k.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "common/simd_avx2.h"
#include "common/unroll.h"
#include "gemm/integer.h"
#include "gemm/vectors_avx2.h"

namespace dfq::DFQ_ISA {
namespace {

void float_block(const float* rows, const float* panel, int64_t depth, float* totals) {
  Floats sums[HEIGHT * VECTORS];
  unrolled<HEIGHT * VECTORS>(DFQ_EACH(i) { sums[i] = floats_at(totals + i * LANES); });
  do {
    Floats columns[VECTORS];
    unrolled<VECTORS>(DFQ_EACH(t) { columns[t] = floats_at(panel + t * LANES); });
    unrolled<HEIGHT>(DFQ_EACH(r) {
      const Floats value = _mm256_broadcast_ss(rows + r);
      unrolled<VECTORS>(DFQ_EACH(t) {
        sums[r * VECTORS + t] = _mm256_fmadd_ps(value, columns[t], sums[r * VECTORS + t]);
        asm("" : "+x"(sums[r * VECTORS + t]));  // stays in its register
      });
    });
    rows += HEIGHT, panel += ROW_VALUES;
  } while (--depth > 0);
  unrolled<HEIGHT * VECTORS>(DFQ_EACH(i) { put(totals + i * LANES, sums[i]); });
}

}  // namespace
}  // namespace dfq::DFQ_ISA
