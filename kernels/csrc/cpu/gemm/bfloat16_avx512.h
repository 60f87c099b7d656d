// Floating products: VDPBF16PS on codes minus zero points, which bfloat16 holds exactly; scales are float32. A piece of
// the weight, FLOAT_DEPTH columns of k, is unpacked once and stays in L1 while all rows pass. float32 and float16 rows
// are the sum of two bfloat16 (relative error 2^-17, none for float16); blocks whose second part is zero skip it.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/integers.h"
#include "common/isa.h"
#include "common/simd_avx512.h"
#include "common/unroll.h"
#include "dfq_abi.h"
#include "gemm/epilogue.h"
#include "gemm/gemm_kernels.h"
#include "gemm/integer.h"
#include "gemm/vectors_avx512.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int64_t FLOAT_DEPTH = 256;
constexpr int64_t AHEAD = 2048;  // bytes of rows: they come from L3, or from memory where k is large
constexpr int PAIRS = 4;  // of a k-block, in the order (0, 2), (1, 3), (4, 6), (5, 7)
constexpr int64_t PANEL_BYTES = FLOAT_DEPTH / 2 * ROW_VALUES * 4;
static_assert(PANEL_BYTES <= WEIGHT_BYTES, "work_bytes");

int64_t part_bytes(const Tile16Weight& w) { return HEIGHT * w.blocks * TILE16_DEPTH * 2; }
int64_t float_bytes(const Tile16Weight& w, int type) { return part_bytes(w) * (type == DFQ_BFLOAT16 ? 1 : 2); }

// Up to 32 values from element `at` on: bfloat16 parts whose sum is the value.
struct Parts {
  __m512i high, low;
};

inline __m256i narrow_exactly(__m512i bits) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)); }

Parts load_parts(const void* x, int type, int64_t at, int64_t count) {
  const __mmask32 mask = ~0u >> (32 - count);
  if (type == DFQ_BFLOAT16) {
    return {_mm512_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(x) + at), _mm512_setzero_si512()};
  }
  __m256i high[2], low[2];
  for (int h = 0; h < 2; ++h) {
    const __mmask16 some = __mmask16(mask >> (16 * h));
    const __m512 v =
        type == DFQ_FLOAT32
            ? _mm512_maskz_loadu_ps(some, static_cast<const float*>(x) + at + 16 * h)
            : _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, static_cast<const uint16_t*>(x) + at + 16 * h));
    const __m512i bits = _mm512_castps_si512(v), top = _mm512_and_si512(bits, _mm512_set1_epi32(int(0xffff0000)));
    const __m512 rest = _mm512_sub_ps(v, _mm512_castsi512_ps(top));
    // NaN and Inf have no rest; a NaN whose payload is all in the lower half must stay one
    const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_sub_ps(v, v), _mm512_setzero_ps(), _CMP_EQ_OQ);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    high[h] = narrow_exactly(_mm512_mask_or_epi32(top, nan, top, _mm512_set1_epi32(0x400000)));
    low[h] = to_bf16(_mm512_maskz_mov_ps(finite, rest));
  }
  return {_mm512_inserti64x4(_mm512_castsi256_si512(high[0]), high[1], 1),
          _mm512_inserti64x4(_mm512_castsi256_si512(low[0]), low[1], 1)};
}

// Rows of a block from k-block `first` on, for a piece of k-blocks at .. stop - 1: [piece][block][pair of k][row][2],
// so that a piece of all blocks is one stretch of memory. The low parts lie behind the high ones.
char* float_rows(const GemmCall& call, int64_t block, int64_t at, int64_t stop, int64_t first) {
  const int64_t bytes = PAIRS * 4 * HEIGHT;
  return call.rows + (at * call.blocks + block * (stop - at) + first - at) * bytes;
}

void pack_float(const GemmCall& call, int64_t begin, int64_t end) {
  const Tile16Weight& w = *call.weight;
  const int64_t k8 = w.blocks * TILE16_DEPTH, part = call.blocks * part_bytes(w), piece = FLOAT_DEPTH / TILE16_DEPTH;
  // words 0 2 | 1 3 | 4 6 | 5 7 of each k-block
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  for (int64_t block = begin; block < end; ++block) {
    __m512i any = _mm512_setzero_si512();
    for (int64_t r = 0; r < HEIGHT; ++r) {
      const int64_t row = block * HEIGHT + r;
      for (int64_t j = 0; j < k8; j += 32) {
        const int64_t count = row < call.m ? minimum(32, w.k - j) : 0, pairs = minimum(16, (k8 - j) / 2);
        Parts parts = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        if (count > 0) parts = load_parts(call.x, call.type, row * w.k + j, count);
        alignas(64) int32_t values[2][16];
        _mm512_store_si512(values[0], _mm512_shuffle_epi8(parts.high, order));
        const int64_t first = j / TILE16_DEPTH, start = first / piece * piece;
        char* at = float_rows(call, block, start, minimum(start + piece, w.blocks), first) + 4 * r;
        for (int64_t i = 0; i < pairs; ++i) std::memcpy(at + i * HEIGHT * 4, &values[0][i], 4);
        if (call.type == DFQ_BFLOAT16) continue;
        any = _mm512_or_si512(any, parts.low);
        _mm512_store_si512(values[1], _mm512_shuffle_epi8(parts.low, order));
        for (int64_t i = 0; i < pairs; ++i) std::memcpy(at + part + i * HEIGHT * 4, &values[1][i], 4);
      }
    }
    call.sums[block] = _mm512_test_epi32_mask(any, any) != 0;
  }
}

// bfloat16 of -16 .. 15
__m512i signed_codes() {
  alignas(64) uint16_t table[32];
  for (int i = 0; i < 32; ++i) {
    const float value = float(i - 16);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    table[i] = uint16_t(bits >> 16);
  }
  return _mm512_load_si512(table);
}

// Tile columns of one group -> [pair][WIDTH][LANES] of codes minus zero points, from k-block `first` on.
template <int WIDTH>
void unpack_tile(const Tile16Weight& w, int64_t tile, int64_t group, int64_t first, int64_t count, uint32_t* to) {
  const uint8_t* from = w.tiles + (tile * w.blocks + first) * TILE16_BYTES;
  const __m512i table = signed_codes(), nibble = _mm512_set1_epi8(15), zero = zeros_of(w, group, tile * TILE16_ROWS);
  if (_mm512_cmpgt_epu32_mask(zero, _mm512_set1_epi32(16)) == 0) {
    // code - zero + 16 is an index; the instruction looks at its low five bits only
    __m512i shift = _mm512_sub_epi32(_mm512_set1_epi32(16), zero);
    shift = _mm512_mullo_epi32(shift, _mm512_set1_epi32(0x01010101));
    for (int64_t j = 0; j < count; ++j, from += TILE16_BYTES) {
      const __m512i v = ints_at(from);
      const __m512i low = _mm512_add_epi8(_mm512_and_si512(v, nibble), shift);
      const __m512i high = _mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi16(v, 4), nibble), shift);
      const __m512i index[PAIRS] = {low, _mm512_srli_epi16(low, 8), high, _mm512_srli_epi16(high, 8)};
      for (int p = 0; p < PAIRS; ++p, to += WIDTH * LANES) {
        _mm512_storeu_si512(to, _mm512_permutexvar_epi16(index[p], table));
      }
    }
    return;
  }
  // Zero points beyond the codes: two floats a lane, exact in bfloat16 (at most 256 in size).
  const __m512 zeros = _mm512_cvtepi32_ps(zero);
  const __m512i upper = _mm512_set1_epi32(int(0xffff0000));
  for (int64_t j = 0; j < count; ++j, from += TILE16_BYTES) {
    for (int p = 0; p < PAIRS; ++p, to += WIDTH * LANES) {
      const __m512i codes = _mm512_srl_epi16(ints_at(from), _mm_cvtsi32_si128(p % 2 * 8 + p / 2 * 4));
      const __m512i even = _mm512_and_si512(codes, _mm512_set1_epi32(15));
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(codes, 16), _mm512_set1_epi32(15));
      const __m512i a = _mm512_castps_si512(_mm512_sub_ps(_mm512_cvtepi32_ps(even), zeros));
      const __m512i b = _mm512_castps_si512(_mm512_sub_ps(_mm512_cvtepi32_ps(odd), zeros));
      _mm512_storeu_si512(to, _mm512_or_si512(_mm512_srli_epi32(a, 16), _mm512_and_si512(b, upper)));
    }
  }
}

// sums += pairs of `count` (1 or more) k-blocks. Written out for the sake of gcc 12, as in the integer product.
template <int WIDTH>
inline __attribute__((always_inline)) void multiply_add(__m512* sums, const char* rows, const uint32_t* panel,
                                                        int64_t count) {
  int64_t steps = PAIRS * count;
  do {
    __m512i codes[WIDTH];
    unrolled<WIDTH>(DFQ_EACH(t) { codes[t] = ints_at(panel + t * LANES); });
    _mm_prefetch(rows + AHEAD, _MM_HINT_T0);
    unrolled<HEIGHT>(DFQ_EACH(r) {
      const __m512i value = dword_x16(rows + 4 * r);
      unrolled<WIDTH>(DFQ_EACH(t) {
        asm("vdpbf16ps %2, %1, %0" : "+v"(sums[r * WIDTH + t]) : "v"(codes[t]), "v"(value));
      });
    });
    rows += 4 * HEIGHT, panel += WIDTH * LANES;
  } while (--steps > 0);
}

// totals += scale * (stretch of one group times a block)
template <int WIDTH>
void float_stretch(const GemmCall& call, int64_t block, const char* rows, int64_t count, bool fresh,
                   const uint32_t* panel, const float* scale, float* totals) {
  __m512 sums[HEIGHT * WIDTH];
  unrolled<HEIGHT * WIDTH>(DFQ_EACH(i) { sums[i] = _mm512_setzero_ps(); });
  multiply_add<WIDTH>(sums, rows, panel, count);
  if (call.sums[block]) multiply_add<WIDTH>(sums, rows + call.blocks * part_bytes(*call.weight), panel, count);
  unrolled<WIDTH>(DFQ_EACH(t) {
    const __m512 factor = _mm512_loadu_ps(scale + t * LANES);
    unrolled<HEIGHT>(DFQ_EACH(r) {
      float* total = totals + r * ROW_VALUES + t * LANES;
      const __m512 before = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(total);
      _mm512_storeu_ps(total, _mm512_fmadd_ps(sums[r * WIDTH + t], factor, before));
    });
  });
}

template <int WIDTH>
void float_tiles(const GemmCall& call, int64_t tile, int64_t begin, int64_t end, float* work) {
  const Tile16Weight& w = *call.weight;
  const int64_t piece = FLOAT_DEPTH / TILE16_DEPTH;
  uint32_t* panel = reinterpret_cast<uint32_t*>(work + 2 * (end - begin) * BLOCK_VALUES);
  struct Stretch {
    int64_t first, count;
    float scale[WIDTH * LANES];
  } stretches[FLOAT_DEPTH / TILE16_DEPTH];
  for (int64_t at = 0, group = 0; at < w.blocks; at += piece) {
    int filled = 0;
    const int64_t stop = minimum(w.blocks, at + piece);
    for (int64_t first = at; first < stop;) {
      if (first == end_of(w, group)) ++group;
      Stretch& stretch = stretches[filled++];
      stretch.first = first;
      stretch.count = minimum(stop, end_of(w, group)) - first;
      for (int64_t t = 0; t < WIDTH; ++t) {
        _mm512_storeu_ps(stretch.scale + t * LANES, widen(w.scale + group * w.n16 + (tile + t) * TILE16_ROWS));
        unpack_tile<WIDTH>(w, tile + t, group, first, stretch.count,
                           panel + (first - at) * PAIRS * WIDTH * LANES + t * LANES);
      }
      first += stretch.count;
    }
    for (int64_t block = begin; block < end; ++block) {
      float* totals = work + (block - begin) * BLOCK_VALUES;
      for (int i = 0; i < filled; ++i) {
        const Stretch& s = stretches[i];
        float_stretch<WIDTH>(call, block, float_rows(call, block, at, stop, s.first), s.count, s.first == 0,
                             panel + (s.first - at) * PAIRS * WIDTH * LANES, s.scale, totals);
      }
      if (stop == w.blocks) finish(call, block, tile * TILE16_ROWS, WIDTH, totals);
    }
  }
}

void multiply_float(const GemmCall& call, int64_t first, int64_t last, int64_t begin, int64_t end, void* work) {
  float* memory = static_cast<float*>(work);
  switch (last - first) {
    case 1: return float_tiles<1>(call, first, begin, end, memory);
    case 2: return float_tiles<2>(call, first, begin, end, memory);
    case 3: return float_tiles<3>(call, first, begin, end, memory);
    default: return float_tiles<4>(call, first, begin, end, memory);
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
