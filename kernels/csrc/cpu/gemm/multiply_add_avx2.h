// multiply_add with AVX2: sums += codes of `blocks` (1 or more) k-blocks times the rows of a block.
#pragma once
#include <cstdint>

#include "common/integers.h"
#include "common/isa.h"
#include "common/simd_avx2.h"
#include "common/unroll.h"
#include "gemm/vectors_avx2.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

// sums += codes of `blocks` (1 or more) k-blocks times the rows of a block. Four times two products of at most
// 15 * 128, twice, fit into the 16 bits that VPMADDUBSW adds in; then they are widened.
template <int WIDTH>
inline __attribute__((always_inline)) void multiply_add(Ints* sums, const char* rows, const uint8_t* tiles, int64_t,
                                                        int64_t blocks) {
  const Ints nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  while (blocks > 0) {
    int64_t burst = minimum(blocks, 4);
    blocks -= burst;
    Ints some[HEIGHT * WIDTH];
    unrolled<HEIGHT * WIDTH>(DFQ_EACH(i) { some[i] = same(0); });
    const auto half = [&](const char* from, const Ints* codes) __attribute__((always_inline)) {
      unrolled<HEIGHT>(DFQ_EACH(r) {
        const Ints value = dword_x8(from + 4 * r);
        unrolled<WIDTH>(DFQ_EACH(t) {
          some[r * WIDTH + t] = _mm256_add_epi16(some[r * WIDTH + t], _mm256_maddubs_epi16(codes[t], value));
          asm("" : "+x"(some[r * WIDTH + t]));  // stays in its register
        });
      });
    };
    do {
      Ints codes[WIDTH];
      unrolled<WIDTH>(DFQ_EACH(t) { codes[t] = _mm256_and_si256(ints_at(tiles + t * 4 * LANES), nibble); });
      half(rows, codes);
      unrolled<WIDTH>(DFQ_EACH(t) {
        codes[t] = _mm256_and_si256(_mm256_srli_epi16(ints_at(tiles + t * 4 * LANES), 4), nibble);
      });
      half(rows + 4 * HEIGHT, codes);
      rows += 8 * HEIGHT, tiles += TILE16_BYTES;
    } while (--burst > 0);
    unrolled<HEIGHT * WIDTH>(DFQ_EACH(i) { sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(some[i], ones)); });
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
