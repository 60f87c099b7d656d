// Keys and values of a tile, unpacked with AVX2, and their integer products with digits:
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
#include "common/simd_avx2.h"

namespace dfq::DFQ_ISA {
namespace {

// 16 bytes of a row, zeros behind its end
inline __m128i load_row(const uint8_t* row, int64_t left) {
  if (left >= 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
  alignas(16) uint8_t bytes[16] = {};
  std::memcpy(bytes, row, size_t(left));
  return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
}

inline void row_pointers(const Rows& rows, int64_t begin, int64_t count, const uint8_t** row) {
  for (int64_t i = 0; i < count; ++i) {
    row[i] = rows.at + minimum(begin + i, rows.count - 1) * rows.stride;
    for (int64_t byte = 0; byte < rows.bytes; byte += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(row[i] + TILE * rows.stride + byte), _MM_HINT_T0);
    }
  }
}

inline void store_codes(__m256i v, int bits, uint8_t* to, int64_t step) {
  if (bits == 8) return store(to, v);
  const __m256i mask = _mm256_set1_epi8(15);
  store(to, _mm256_and_si256(v, mask));
  store(to + step, _mm256_and_si256(_mm256_srli_epi16(v, 4), mask));
}

void unpack_keys(const Rows& rows, uint8_t* panels) {
  const int64_t step = rows.bits == 4 ? 128 : 64;
  const uint8_t* row[16];
  for (int64_t begin = 0; begin < rows.count; begin += 16) {
    row_pointers(rows, begin, 16, row);
    for (int64_t byte = 0; byte < rows.bytes; byte += 16, panels += 4 * step) {
      for (int half = 0; half < 2; ++half) {  // eight rows
        __m256i v[4];
        for (int j = 0; j < 4; ++j) {
          const __m128i low = load_row(row[8 * half + j] + byte, rows.bytes - byte);
          const __m128i high = load_row(row[8 * half + 4 + j] + byte, rows.bytes - byte);
          v[j] = _mm256_set_m128i(high, low);
        }
        const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
        const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
        uint8_t* to = panels + 32 * half;
        store_codes(_mm256_unpacklo_epi64(a, c), rows.bits, to, 64);
        store_codes(_mm256_unpackhi_epi64(a, c), rows.bits, to + step, 64);
        store_codes(_mm256_unpacklo_epi64(b, d), rows.bits, to + 2 * step, 64);
        store_codes(_mm256_unpackhi_epi64(b, d), rows.bits, to + 3 * step, 64);
      }
    }
  }
}

void unpack_values(const Rows& rows, uint8_t* panels) {
  const int64_t panel = TILE * 16, step = rows.bits == 4 ? 2 * panel : panel;
  const uint8_t* row[4];
  for (int64_t begin = 0; begin < rows.count; begin += 4, panels += 64) {
    row_pointers(rows, begin, 4, row);
    uint8_t* to = panels;
    for (int64_t byte = 0; byte < rows.bytes; byte += 16, to += step) {
      __m128i v[4];
      for (int i = 0; i < 4; ++i) v[i] = load_row(row[i] + byte, rows.bytes - byte);
      const __m128i a = _mm_unpacklo_epi8(v[0], v[1]), b = _mm_unpackhi_epi8(v[0], v[1]);
      const __m128i c = _mm_unpacklo_epi8(v[2], v[3]), d = _mm_unpackhi_epi8(v[2], v[3]);
      const __m256i low = _mm256_set_m128i(_mm_unpackhi_epi16(a, c), _mm_unpacklo_epi16(a, c));
      const __m256i high = _mm256_set_m128i(_mm_unpackhi_epi16(b, d), _mm_unpacklo_epi16(b, d));
      store_codes(low, rows.bits, to, panel);
      store_codes(high, rows.bits, to + 32, panel);
    }
  }
}

// Eight bits: u = (u & 127) + 128 (u >> 7), so that the sums of two products fit into 16 bits.
inline __m256i products(__m256i codes, __m256i values) {
  const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(codes, _mm256_set1_epi8(127)), values);
  const __m256i top = _mm256_and_si256(_mm256_srli_epi16(codes, 7), _mm256_set1_epi8(1));
  const __m256i high = _mm256_madd_epi16(_mm256_maddubs_epi16(top, values), _mm256_set1_epi16(128));
  return _mm256_add_epi32(_mm256_madd_epi16(low, _mm256_set1_epi16(1)), high);
}

template <int LINES>
void multiply_lines(const int8_t* a, int64_t stride, const uint8_t* panel, int64_t quads, int32_t* out,
                    int64_t out_stride) {
  __m256i sums[LINES][2];
  for (int i = 0; i < LINES; ++i) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
  for (int64_t j = 0; j < quads; ++j) {
    const __m256i low = load(panel + j * 64), high = load(panel + j * 64 + 32);
    for (int i = 0; i < LINES; ++i) {
      const __m256i values = dword_x8(a + i * stride + 4 * j);
      sums[i][0] = _mm256_add_epi32(sums[i][0], products(low, values));
      sums[i][1] = _mm256_add_epi32(sums[i][1], products(high, values));
    }
  }
  for (int i = 0; i < LINES; ++i) {
    store(out + i * out_stride, sums[i][0]);
    store(out + i * out_stride + 8, sums[i][1]);
  }
}

void multiply(const int8_t* a, int64_t stride, int64_t lines, const uint8_t* panels, int64_t quads, int64_t count,
              int64_t panel_quads, int32_t* out, int64_t out_stride) {
  for (int64_t line = 0; line < lines;) {
    const int64_t height = lines - line >= 4 ? 4 : 1;
    for (int64_t p = 0; p < count; ++p) {
      const auto run = height == 4 ? multiply_lines<4> : multiply_lines<1>;
      run(a + line * stride, stride, panels + p * panel_quads * 64, quads, out + line * out_stride + 16 * p,
          out_stride);
    }
    line += height;
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
