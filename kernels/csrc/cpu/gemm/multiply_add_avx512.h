// multiply_add with AVX-512: sums += codes of `blocks` (1 or more) k-blocks times the rows of a block.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "common/simd_avx512.h"
#include "common/unroll.h"
#include "gemm/vectors_avx512.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

// sums += codes of `blocks` (1 or more) k-blocks times the rows of a block. The instruction is written out because gcc
// 12 spills accumulators of its intrinsic.
template <int WIDTH>
inline __attribute__((always_inline)) void multiply_add(Ints* sums, const char* rows, const uint8_t* tiles,
                                                        int64_t stride, int64_t blocks) {
  const Ints nibble = _mm512_set1_epi8(15);
  const auto half = [&](const char* from, const Ints* codes) __attribute__((always_inline)) {
    unrolled<HEIGHT>(DFQ_EACH(r) {
      const Ints value = dword_x16(from + 4 * r);
      unrolled<WIDTH>(DFQ_EACH(t) {
        asm("vpdpbusd %2, %1, %0" : "+v"(sums[r * WIDTH + t]) : "v"(codes[t]), "v"(value));
      });
    });
  };
  do {
    Ints codes[WIDTH];
    unrolled<WIDTH>(DFQ_EACH(t) { codes[t] = _mm512_and_si512(ints_at(tiles + t * stride), nibble); });
    half(rows, codes);
    unrolled<WIDTH>(DFQ_EACH(t) {
      codes[t] = _mm512_and_si512(_mm512_srli_epi16(ints_at(tiles + t * stride), 4), nibble);
    });
    half(rows + 4 * HEIGHT, codes);
    rows += 8 * HEIGHT, tiles += TILE16_BYTES;
  } while (--blocks > 0);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
