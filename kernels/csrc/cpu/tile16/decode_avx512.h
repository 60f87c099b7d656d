// Decode with tiles with AVX-512 (VNNI, BF16, VBMI): up to sixteen rows times as many tiles at once as registers hold.
#pragma once
#include <cstdint>

#include "common/integers.h"
#include "common/isa.h"
#include "common/simd_avx512.h"
#include "common/unroll.h"
#include "dfq_abi.h"
#include "tile16/prepare_avx512.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

// Four tiles at a time are four streams from memory, each prefetched this far ahead into L2: what it takes to keep the
// memory of a server busy with one or two cores (measured: 1 stream 43 GB/s, 4 streams 50, with prefetch 57).
constexpr int64_t AHEAD = 1024;


inline __m512i zeros_of(const Tile16Weight& w, int64_t group, int64_t tile) {
  if (!w.zero) return _mm512_set1_epi32(8);
  const uint8_t* from = w.zero + group * w.n16 + tile * TILE16_ROWS;
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline void finish(const Tile16Out& out, int64_t n, int64_t row, int64_t tile, __m512 y) {
  const int64_t first = tile * TILE16_ROWS;
  const __mmask16 mask = __mmask16((1u << minimum(TILE16_ROWS, n - first)) - 1);
  if (out.bias) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, out.bias + first));
  const int64_t at = row * n + first;
  if (out.type == DFQ_FLOAT32) {
    _mm512_mask_storeu_ps(static_cast<float*>(out.y) + at, mask, y);
  } else {
    const __m256i half = out.type == DFQ_BFLOAT16 ? to_bf16(y) : _mm512_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT);
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out.y) + at, mask, half);
  }
}

// The multiply-adds are written out because gcc 12 moves the accumulators of its intrinsics around.
inline __attribute__((always_inline)) void add_products(__m512i& sum, __m512i codes, __m512i values) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(values));
}

inline __attribute__((always_inline)) void add_products(__m512& sum, __m512i codes, __m512i values) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(values));
}

inline void fetch(const uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from + AHEAD), _MM_HINT_T1); }

// Where the exact sums of a group start: - zero * sum(q) - x_zero * (sums - zero * columns), modulo 2^32.
template <int M>
inline __attribute__((always_inline)) void start_sums(const Tile16Call& call, int64_t group, int64_t tile,
                                                      __m512i* sum) {
  const Tile16Weight& w = *call.weight;
  const int32_t* q_sums = call.q_sums + group;
  if (!w.zero && !call.x_zero) {
    unrolled<M>(DFQ_EACH(m) { sum[m] = _mm512_set1_epi32(-8 * q_sums[m * w.groups]); });
    return;
  }
  const __m512i zero = zeros_of(w, group, tile);
  unrolled<M>(DFQ_EACH(m) { sum[m] = _mm512_mullo_epi32(zero, _mm512_set1_epi32(-q_sums[m * w.groups])); });
  if (call.x_zero) {
    const int64_t columns = minimum(w.group, w.k - group * w.group);
    const __m512i sums = _mm512_loadu_si512(w.sums + group * w.n16 + tile * TILE16_ROWS);
    const __m512i codes = _mm512_sub_epi32(sums, _mm512_mullo_epi32(zero, _mm512_set1_epi32(int32_t(columns))));
    unrolled<M>(DFQ_EACH(m) {
      sum[m] = _mm512_sub_epi32(sum[m], _mm512_mullo_epi32(codes, _mm512_set1_epi32(call.x_zero[m])));
    });
  }
}

// M rows times the T tiles tile, tile + step, ...
template <int M, int T>
void integer_tiles(const Tile16Call& call, int64_t tile, int64_t step) {
  const Tile16Weight& w = *call.weight;
  const uint8_t* in = w.tiles + tile * w.blocks * TILE16_BYTES;
  const int64_t stride = step * w.blocks * TILE16_BYTES, depth = w.group / TILE16_DEPTH;
  const char* x = static_cast<const char*>(call.rows);
  const __m512i nibble = _mm512_set1_epi8(15);
  __m512 total[T * M];
  unrolled<T * M>(DFQ_EACH(i) { total[i] = _mm512_setzero_ps(); });
  for (int64_t group = 0; group < w.groups; ++group) {
    __m512i sum[T * M];
    unrolled<T>(DFQ_EACH(t) { start_sums<M>(call, group, tile + t * step, sum + t * M); });
    const int64_t blocks = group + 1 < w.groups ? depth : w.blocks - group * depth;
    for (int64_t j = 0; j < blocks; ++j, in += TILE16_BYTES, x += 8 * M) {
      __m512i low[T], high[T];
      unrolled<T>(DFQ_EACH(t) {
        const __m512i v = _mm512_loadu_si512(in + t * stride);
        fetch(in + t * stride);
        low[t] = _mm512_and_si512(v, nibble);
        high[t] = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
      });
      unrolled<M>(DFQ_EACH(m) {
        const __m512i values = dword_x16(x + 8 * m);
        unrolled<T>(DFQ_EACH(t) { add_products(sum[t * M + m], low[t], values); });
      });
      unrolled<M>(DFQ_EACH(m) {
        const __m512i values = dword_x16(x + 8 * m + 4);
        unrolled<T>(DFQ_EACH(t) { add_products(sum[t * M + m], high[t], values); });
      });
    }
    unrolled<T>(DFQ_EACH(t) {
      const __m512 scale = widen_bf16(w.scale + group * w.n16 + (tile + t * step) * TILE16_ROWS);
      unrolled<M>(DFQ_EACH(m) {
        const __m512 exact = _mm512_cvtepi32_ps(sum[t * M + m]);
        total[t * M + m] = _mm512_add_ps(total[t * M + m], _mm512_mul_ps(exact, scale));
      });
    });
  }
  unrolled<M>(DFQ_EACH(m) {
    const __m512 scale = _mm512_set1_ps(call.x_scale[m]);
    unrolled<T>(DFQ_EACH(t) { finish(call.out, w.n, m, tile + t * step, _mm512_mul_ps(total[t * M + m], scale)); });
  });
}

// Bfloat16 rows (P = 1 part), or float rows as a sum of two bfloat16 (P = 2). One chain of sums per output whatever M
// and T: a row of a batch has the bits it has alone.
template <int M, int T, int P>
void float_tiles(const Tile16Call& call, int64_t tile, int64_t step) {
  const Tile16Weight& w = *call.weight;
  const uint8_t* in = w.tiles + tile * w.blocks * TILE16_BYTES;
  const int64_t stride = step * w.blocks * TILE16_BYTES, depth = w.group / TILE16_DEPTH;
  const char* x = static_cast<const char*>(call.rows);
  const __m512i table = code_table();
  __m512 total[T * M];
  unrolled<T * M>(DFQ_EACH(i) { total[i] = _mm512_setzero_ps(); });
  for (int64_t group = 0; group < w.groups; ++group) {
    __m512 sum[T * M];
    unrolled<T * M>(DFQ_EACH(i) { sum[i] = _mm512_setzero_ps(); });
    const int64_t blocks = group + 1 < w.groups ? depth : w.blocks - group * depth;
    for (int64_t j = 0; j < blocks; ++j, in += TILE16_BYTES, x += 16 * M * P) {
      unrolled<T>(DFQ_EACH(t) { fetch(in + t * stride); });
      unrolled<4>(DFQ_EACH(pair) {
        __m512i codes[T];
        unrolled<T>(DFQ_EACH(t) {
          const __m512i v = _mm512_loadu_si512(in + t * stride);
          codes[t] = _mm512_permutexvar_epi16(pair ? _mm512_srli_epi16(v, 4 * pair) : v, table);
        });
        unrolled<M * P>(DFQ_EACH(i) {
          const __m512i values = dword_x16(x + 16 * i + 4 * pair);
          unrolled<T>(DFQ_EACH(t) { add_products(sum[t * M + i / P], codes[t], values); });
        });
      });
    }
    unrolled<T>(DFQ_EACH(t) {
      const __m512 scale = widen_bf16(w.scale + group * w.n16 + (tile + t * step) * TILE16_ROWS);
      if (w.zero) {
        const __m512i shift = _mm512_sub_epi32(_mm512_set1_epi32(8), zeros_of(w, group, tile + t * step));
        const __m512 shifts = _mm512_cvtepi32_ps(shift);
        unrolled<M>(DFQ_EACH(m) {
          const __m512 x_sum = _mm512_set1_ps(call.x_sums[m * w.groups + group]);
          sum[t * M + m] = _mm512_fmadd_ps(shifts, x_sum, sum[t * M + m]);
        });
      }
      unrolled<M>(DFQ_EACH(m) { total[t * M + m] = _mm512_fmadd_ps(sum[t * M + m], scale, total[t * M + m]); });
    });
  }
  unrolled<M>(DFQ_EACH(m) {
    unrolled<T>(DFQ_EACH(t) { finish(call.out, w.n, m, tile + t * step, total[t * M + m]); });
  });
}

using Tiles = void (*)(const Tile16Call&, int64_t, int64_t);

struct Widths {  // for one number of rows: as many tiles at once as registers hold
  Tiles one, two, four;
};

// Tiles begin .. end - 1: four streams that are each contiguous, then what is left.
void run(const Widths& widths, const Tile16Call& call, int64_t begin, int64_t end) {
  const int width = widths.four ? 4 : widths.two ? 2 : 1;
  const Tiles many = widths.four ? widths.four : widths.two ? widths.two : widths.one;
  const int64_t step = (end - begin) / width;
  for (int64_t i = 0; i < step; ++i) many(call, begin + i, step);
  begin += width * step;
  if (widths.two && width == 4 && end - begin >= 2) {
    widths.two(call, begin, 1);
    begin += 2;
  }
  for (; begin < end; ++begin) widths.one(call, begin, 1);
}

template <int M>
constexpr Widths integer_widths() {
  if constexpr (M <= 4) return {integer_tiles<M, 1>, integer_tiles<M, 2>, integer_tiles<M, 4>};
  if constexpr (M <= 8) return {integer_tiles<M, 1>, integer_tiles<M, 2>, nullptr};
  return {integer_tiles<M, 1>, nullptr, nullptr};
}

template <int M, int P>
constexpr Widths float_widths() {
  if constexpr (M <= 4) return {float_tiles<M, 1, P>, float_tiles<M, 2, P>, float_tiles<M, 4, P>};
  if constexpr (M <= 8) return {float_tiles<M, 1, P>, float_tiles<M, 2, P>, nullptr};
  return {float_tiles<M, 1, P>, nullptr, nullptr};
}

#define DFQ_EACH_ROWS(F) \
  F(1), F(2), F(3), F(4), F(5), F(6), F(7), F(8), F(9), F(10), F(11), F(12), F(13), F(14), F(15), F(16)
#define DFQ_INTEGER(M) integer_widths<M>()
#define DFQ_ONE_PART(M) float_widths<M, 1>()
#define DFQ_TWO_PARTS(M) float_widths<M, 2>()
// constexpr: nothing of this unit may run while the library is loaded
constexpr Widths integers[DECODE_ROWS] = {DFQ_EACH_ROWS(DFQ_INTEGER)};
constexpr Widths one_part[DECODE_ROWS] = {DFQ_EACH_ROWS(DFQ_ONE_PART)};
constexpr Widths two_parts[DECODE_ROWS] = {DFQ_EACH_ROWS(DFQ_TWO_PARTS)};

void decode_integer(const Tile16Call& call, int64_t begin, int64_t end) { run(integers[call.m - 1], call, begin, end); }

void decode_float(const Tile16Call& call, int type, int64_t begin, int64_t end) {
  run((type == DFQ_BFLOAT16 ? one_part : two_parts)[call.m - 1], call, begin, end);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
