// Keys and values of a tile, unpacked with AVX-512 (VNNI, VBMI), and their integer products with digits:
//   unpack_keys   rows -> panels [position / 16][quad of the row][16 positions][4 codes]
//   unpack_values rows -> panels [16 values of the row][position / 4][16 values][4 positions]
//   multiply      out[line][16 p + i] = sum over quads j of a[line][4 j .. 4 j + 3] . panels[p][j][i][4]
// With 4 bits a 32-bit word of a row holds 8 codes; masked, its even codes are one quad and its odd codes the next.
#pragma once
#include <cstdint>
#include <cstring>

#include "attention/attention_kernels.h"
#include "attention/fixed_point.h"
#include "attention/tile_rows.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/simd_avx512.h"

namespace dfq::DFQ_ISA {
namespace {

// 16 bytes (fewer at the end of a row) of the rows at, at + step, at + 2 step, at + 3 step
inline __m512i load_rows(const uint8_t* const* row, int64_t step, int64_t byte, __mmask16 mask) {
  const __m128i a = _mm_maskz_loadu_epi8(mask, row[0] + byte), b = _mm_maskz_loadu_epi8(mask, row[step] + byte);
  const __m128i c = _mm_maskz_loadu_epi8(mask, row[2 * step] + byte),
                d = _mm_maskz_loadu_epi8(mask, row[3 * step] + byte);
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(c), d, 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

inline __mmask16 tail_mask(int64_t bytes) { return __mmask16(bytes >= 16 ? 0xffff : (1 << bytes) - 1); }

// The rows of one block, the last one repeated; the rows of the next tile are fetched ahead.
inline void row_pointers(const Rows& rows, int64_t begin, int64_t count, const uint8_t** row) {
  for (int64_t i = 0; i < count; ++i) {
    row[i] = rows.at + minimum(begin + i, rows.count - 1) * rows.stride;
    for (int64_t byte = 0; byte < rows.bytes; byte += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(row[i] + TILE * rows.stride + byte), _MM_HINT_T0);
    }
  }
}

inline void store_codes(__m512i v, int bits, uint8_t* to, int64_t step) {
  if (bits == 8) return _mm512_storeu_si512(to, v);
  const __m512i mask = _mm512_set1_epi8(15);
  _mm512_storeu_si512(to, _mm512_and_si512(v, mask));
  _mm512_storeu_si512(to + step, _mm512_and_si512(_mm512_srli_epi16(v, 4), mask));
}

void unpack_keys(const Rows& rows, uint8_t* panels) {
  const int64_t step = rows.bits == 4 ? 128 : 64;  // bytes that a word of 16 rows becomes
  const uint8_t* row[16];
  for (int64_t begin = 0; begin < rows.count; begin += 16) {
    row_pointers(rows, begin, 16, row);
    for (int64_t byte = 0; byte < rows.bytes; byte += 16, panels += 4 * step) {
      const __mmask16 mask = tail_mask(rows.bytes - byte);
      // v[j], 128-bit lane l: four words of row 4 l + j. Transposed 4 x 4 in every lane: one word of 16 rows.
      __m512i v[4];
      for (int j = 0; j < 4; ++j) v[j] = load_rows(row + j, 4, byte, mask);
      const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
      const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
      store_codes(_mm512_unpacklo_epi64(a, c), rows.bits, panels, 64);
      store_codes(_mm512_unpackhi_epi64(a, c), rows.bits, panels + step, 64);
      store_codes(_mm512_unpacklo_epi64(b, d), rows.bits, panels + 2 * step, 64);
      store_codes(_mm512_unpackhi_epi64(b, d), rows.bits, panels + 3 * step, 64);
    }
  }
}

void unpack_values(const Rows& rows, uint8_t* panels) {
  alignas(64) uint8_t order[64];
  for (int i = 0; i < 64; ++i) order[i] = uint8_t(i % 4 * 16 + i / 4);
  const __m512i transposed = _mm512_load_si512(order);
  const int64_t panel = TILE * 16, step = rows.bits == 4 ? 2 * panel : panel;
  const uint8_t* row[4];
  for (int64_t begin = 0; begin < rows.count; begin += 4, panels += 64) {
    row_pointers(rows, begin, 4, row);
    uint8_t* to = panels;
    for (int64_t byte = 0; byte < rows.bytes; byte += 16, to += step) {
      const __m512i v = load_rows(row, 1, byte, tail_mask(rows.bytes - byte));
      store_codes(_mm512_permutexvar_epi8(transposed, v), rows.bits, to, panel);
    }
  }
}

template <int LINES, int PANELS>
inline void multiply_block(const int8_t* a, int64_t stride, const uint8_t* panels, int64_t quads, int64_t panel_bytes,
                           int32_t* out, int64_t out_stride) {
  __m512i sums[LINES][PANELS];
  for (int i = 0; i < LINES; ++i) {
    for (int p = 0; p < PANELS; ++p) sums[i][p] = _mm512_setzero_si512();
  }
  for (int64_t j = 0; j < quads; ++j) {
    __m512i codes[PANELS];
    for (int p = 0; p < PANELS; ++p) codes[p] = _mm512_loadu_si512(panels + p * panel_bytes + j * 64);
    for (int i = 0; i < LINES; ++i) {
      const __m512i values = dword_x16(a + i * stride + 4 * j);
      for (int p = 0; p < PANELS; ++p) sums[i][p] = _mm512_dpbusd_epi32(sums[i][p], codes[p], values);
    }
  }
  for (int i = 0; i < LINES; ++i) {
    for (int p = 0; p < PANELS; ++p) _mm512_storeu_si512(out + i * out_stride + 16 * p, sums[i][p]);
  }
}

template <int LINES>
void multiply_lines(const int8_t* a, int64_t stride, const uint8_t* panels, int64_t quads, int64_t count,
                    int64_t panel_bytes, int32_t* out, int64_t out_stride) {
  int64_t p = 0;
  for (; p + 4 <= count; p += 4) {
    multiply_block<LINES, 4>(a, stride, panels + p * panel_bytes, quads, panel_bytes, out + 16 * p, out_stride);
  }
  for (; p + 2 <= count; p += 2) {
    multiply_block<LINES, 2>(a, stride, panels + p * panel_bytes, quads, panel_bytes, out + 16 * p, out_stride);
  }
  if (p < count) {
    multiply_block<LINES, 1>(a, stride, panels + p * panel_bytes, quads, panel_bytes, out + 16 * p, out_stride);
  }
}

void multiply(const int8_t* a, int64_t stride, int64_t lines, const uint8_t* panels, int64_t quads, int64_t count,
              int64_t panel_quads, int32_t* out, int64_t out_stride) {
  const int64_t bytes = panel_quads * 64;
  int64_t line = 0;
  for (; line + 4 <= lines; line += 4) {
    multiply_lines<4>(a + line * stride, stride, panels, quads, count, bytes, out + line * out_stride, out_stride);
  }
  if (lines - line >= 3) {
    multiply_lines<3>(a + line * stride, stride, panels, quads, count, bytes, out + line * out_stride, out_stride);
  } else if (lines - line == 2) {
    multiply_lines<2>(a + line * stride, stride, panels, quads, count, bytes, out + line * out_stride, out_stride);
  } else if (lines - line == 1) {
    multiply_lines<1>(a + line * stride, stride, panels, quads, count, bytes, out + line * out_stride, out_stride);
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
