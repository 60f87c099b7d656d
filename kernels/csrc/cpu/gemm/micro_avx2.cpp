// AVX2 + FMA: products of the tile16 family with many rows. Blocks of 6 rows times one tile, two vectors of 8 columns.
#include <immintrin.h>

#include <cstring>

#include "dfq_kernels.h"
#include "gemm/gemm_kernels.h"

namespace dfq {
namespace {

constexpr int HEIGHT = 6, VECTORS = 2, LANES = 8;
using Ints = __m256i;
using Floats = __m256;

#include "common/convert.h"
#include "common/unroll.h"

inline Ints ints_at(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline Floats floats_at(const float* from) { return _mm256_loadu_ps(from); }
inline void put(void* to, Ints v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
inline void put(float* to, Floats v) { _mm256_storeu_ps(to, v); }
inline Ints same(int32_t value) { return _mm256_set1_epi32(value); }
inline Ints minus(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
inline Ints product(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
inline Floats plus(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats product(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
inline Ints pair(Ints low, Ints high) { return _mm256_or_si256(low, _mm256_slli_epi32(high, 16)); }
inline Ints pair_product(Ints a, Ints b) { return _mm256_madd_epi16(a, b); }

inline Ints low_nibble(Ints v) { return _mm256_and_si256(v, same(15)); }
inline Ints without_nibble(Ints v) { return _mm256_srli_epi32(v, 4); }

inline Ints dword(const void* from) {
  int32_t value;
  std::memcpy(&value, from, 4);
  return same(value);
}

// bfloat16 values as float
inline Floats widen(const uint16_t* from) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

inline Ints zeros_of(const TiledWeight& w, int64_t group, int64_t column) {
  if (!w.zero) return same(8);
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w.zero + group * w.n16 + column)));
}

#include "gemm/epilogue.h"

// sums += codes of `blocks` (1 or more) k-blocks times the rows of a block. Four times two products of at most
// 15 * 128, twice, fit into the 16 bits that VPMADDUBSW adds in; then they are widened.
template <int WIDTH>
inline __attribute__((always_inline)) void multiply_add(Ints* sums, const char* rows, const uint8_t* tiles, int64_t,
                                                        int64_t blocks) {
  const Ints nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  while (blocks > 0) {
    int64_t burst = least(blocks, 4);
    blocks -= burst;
    Ints some[HEIGHT * WIDTH];
    unrolled<HEIGHT * WIDTH>(DFQ_EACH(i) { some[i] = same(0); });
    const auto half = [&](const char* from, const Ints* codes) __attribute__((always_inline)) {
      unrolled<HEIGHT>(DFQ_EACH(r) {
        const Ints value = dword(from + 4 * r);
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
      rows += 8 * HEIGHT, tiles += TILED_BYTES;
    } while (--burst > 0);
    unrolled<HEIGHT * WIDTH>(DFQ_EACH(i) { sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(some[i], ones)); });
  }
}

#include "gemm/integer_rows.h"

#include "gemm/integer.h"

#include "gemm/float32.h"

// totals += rows times panel, `depth` (1 or more) columns of k
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

void multiply_integer(const GemmCall& call, int64_t first, int64_t last, int64_t begin, int64_t end, void* work) {
  for (; first < last; ++first) integer_columns<VECTORS>(call, first, begin, end, static_cast<float*>(work));
}

// totals, sums of one group that is longer than a piece, what a piece of the weight becomes
int64_t work_bytes(int64_t blocks) { return 2 * blocks * BLOCK_VALUES * 4 + WEIGHT_BYTES; }

}  // namespace

const GemmKernels avx2_gemm = {
    HEIGHT,     1,                integer_bytes,  float_bytes, pack_integer, pack_float,
    work_bytes, multiply_integer, multiply_float,
};

}  // namespace dfq
