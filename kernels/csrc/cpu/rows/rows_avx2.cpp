// AVX2 + FMA + F16C. Compiled with those flags, called only on processors that have them.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "dfq_kernels.h"
#include "rows/row_kernels.h"

namespace dfq {
namespace {

constexpr int64_t CHUNK = 1024;  // values of a row that are converted and kept in cache; fills whole bytes when packed

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store(void* to, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }

#include "common/convert.h"

#include "rows/packing.h"

#include "rows/range.h"

// Written out: the compiler turns the comparisons of the portable loops into masks instead of min and max.
void extend(Range& range, const float* x, int64_t count) {
  const __m256 nothing = _mm256_setzero_ps();
  __m256 low[2], high[2], bad[2];
  for (int h = 0; h < 2; ++h) {
    low[h] = _mm256_loadu_ps(range.low + 8 * h);
    high[h] = _mm256_loadu_ps(range.high + 8 * h);
    bad[h] = _mm256_loadu_ps(range.bad + 8 * h);
  }
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    for (int h = 0; h < 2; ++h) {
      const __m256 v = _mm256_loadu_ps(x + i + 8 * h);
      low[h] = _mm256_min_ps(v, low[h]);
      high[h] = _mm256_max_ps(v, high[h]);
      bad[h] = _mm256_add_ps(bad[h], _mm256_mul_ps(v, nothing));
    }
  }
  for (int h = 0; h < 2; ++h) {
    _mm256_storeu_ps(range.low + 8 * h, low[h]);
    _mm256_storeu_ps(range.high + 8 * h, high[h]);
    _mm256_storeu_ps(range.bad + 8 * h, bad[h]);
  }
  for (; i < count; ++i) extend_one(range, 0, x[i]);
}

// One byte per code, signed or not: the low byte of the integer.
void write_codes(const float* x, int64_t count, float scale, float zero, float floor, float ceil, uint8_t* to) {
  const __m256 scales = _mm256_set1_ps(scale), zeros = _mm256_set1_ps(zero);
  const __m256 floors = _mm256_set1_ps(floor), ceils = _mm256_set1_ps(ceil), limit = _mm256_set1_ps(1024.0f);
  const __m256i byte = _mm256_set1_epi32(255), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    __m256i codes[4];
    for (int part = 0; part < 4; ++part) {
      __m256 v = _mm256_div_ps(_mm256_loadu_ps(x + i + 8 * part), scales);
      v = _mm256_min_ps(_mm256_max_ps(v, _mm256_sub_ps(_mm256_setzero_ps(), limit)), limit);
      v = _mm256_add_ps(_mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), zeros);
      v = _mm256_min_ps(_mm256_max_ps(v, floors), ceils);
      codes[part] = _mm256_and_si256(_mm256_cvtps_epi32(v), byte);
    }
    const __m256i low = _mm256_packus_epi32(codes[0], codes[1]), high = _mm256_packus_epi32(codes[2], codes[3]);
    store(to + i, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order));
  }
  for (; i < count; ++i) to[i] = uint8_t(int32_t(code_of(x[i], scale, zero, floor, ceil)));
}

// The three stages inside one register are swaps with signs, the others are plain butterflies.
void butterflies(float* x, int64_t size, int64_t half);

void transform(float* x, int64_t size) {
  if (size < 8) return butterflies(x, size, 1);
  const __m256 one = _mm256_setr_ps(0.f, -0.f, 0.f, -0.f, 0.f, -0.f, 0.f, -0.f);
  const __m256 two = _mm256_setr_ps(0.f, 0.f, -0.f, -0.f, 0.f, 0.f, -0.f, -0.f);
  const __m256 four = _mm256_setr_ps(0.f, 0.f, 0.f, 0.f, -0.f, -0.f, -0.f, -0.f);
  for (int64_t i = 0; i < size; i += 8) {
    __m256 v = _mm256_loadu_ps(x + i);
    v = _mm256_add_ps(_mm256_permute_ps(v, 0xb1), _mm256_xor_ps(v, one));
    v = _mm256_add_ps(_mm256_permute_ps(v, 0x4e), _mm256_xor_ps(v, two));
    v = _mm256_add_ps(_mm256_permute2f128_ps(v, v, 1), _mm256_xor_ps(v, four));
    _mm256_storeu_ps(x + i, v);
  }
  butterflies(x, size, 8);
}

#include "rows/quantize.h"

// 32 codes in order from 16 bytes
inline __m256i unpack32(const uint8_t* packed) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)), mask = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(bytes, mask), high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
  return _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high));
}

// 8 rows of 8 quads become 8 quads of 8 rows.
inline void transpose(__m256i v[8]) {
  __m256i a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
    a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
    v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
  }
}

void build_quads(const Weight& weight, int64_t column, int64_t first, int64_t count, uint8_t* quads) {
  const int64_t bytes = (weight.k + 1) / 2;
  for (int64_t n = 0; n < PANEL_N; n += 8) {
    const int64_t width = least(8, weight.n - column - n);
    const uint8_t* rows = weight.packed + (column + n) * bytes;
    for (int64_t j = 0; j < count; j += 32) {
      __m256i v[8];
      if (width == 8 && count - j >= 32 && first % 2 == 0) {
        for (int64_t i = 0; i < 8; ++i) v[i] = unpack32(rows + i * bytes + (first + j) / 2);
      } else {
        alignas(32) uint8_t codes[32];
        for (int64_t i = 0; i < 8; ++i) {
          std::memset(codes, 0, 32);
          if (i < width) unpack_codes(rows + i * bytes, first + j, least(32, count - j), 4, codes);
          v[i] = load(codes);
        }
      }
      transpose(v);
      const int64_t filled = least(8, (count - j + 3) / 4);
      for (int64_t i = 0; i < filled; ++i) store(quads + ((j / 4 + i) * PANEL_N + n) * 4, v[i]);
    }
  }
}

void sum_quads(const uint8_t* quads, int64_t count, int32_t* sums) {
  const __m256i bytes = _mm256_set1_epi8(1), words = _mm256_set1_epi16(1);
  __m256i low = load(sums), high = load(sums + 8);
  for (int64_t j = 0; j < count; j += 4, quads += 4 * PANEL_N) {
    low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_maddubs_epi16(load(quads), bytes), words));
    high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_maddubs_epi16(load(quads + 32), bytes), words));
  }
  store(sums, low);
  store(sums + 8, high);
}

void spread_quads(const uint8_t* quads, int64_t count, const float* scale, const int32_t* zero, float* to) {
  const __m256i mask = _mm256_set1_epi32(255), zeros[2] = {load(zero), load(zero + 8)};
  const __m256 scales[2] = {_mm256_loadu_ps(scale), _mm256_loadu_ps(scale + 8)};
  for (int64_t j = 0; j < count; j += 4, quads += 4 * PANEL_N) {
    __m256i v[2] = {load(quads), load(quads + 32)};
    const int64_t filled = least(4, count - j);
    for (int64_t i = 0; i < filled; ++i, to += PANEL_N) {
      for (int half = 0; half < 2; ++half) {
        const __m256i code = _mm256_sub_epi32(_mm256_and_si256(v[half], mask), zeros[half]);
        _mm256_storeu_ps(to + 8 * half, _mm256_mul_ps(_mm256_cvtepi32_ps(code), scales[half]));
        v[half] = _mm256_srli_epi32(v[half], 8);
      }
    }
  }
}

#include "common/height.h"

template <int ROWS>
void float_micro(Height<ROWS>, const float* x, const float* panel, int64_t depth, float* sums) {
  __m256 low[ROWS], high[ROWS];
  for (int r = 0; r < ROWS; ++r) low[r] = high[r] = _mm256_setzero_ps();
  for (int64_t j = 0; j < depth; ++j, x += ROWS, panel += PANEL_N) {
    const __m256 left = _mm256_loadu_ps(panel), right = _mm256_loadu_ps(panel + 8);
    for (int r = 0; r < ROWS; ++r) {
      const __m256 value = _mm256_broadcast_ss(x + r);
      low[r] = _mm256_fmadd_ps(value, left, low[r]);
      high[r] = _mm256_fmadd_ps(value, right, high[r]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    float* to = sums + r * TILE_N;
    _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), low[r]));
    _mm256_storeu_ps(to + 8, _mm256_add_ps(_mm256_loadu_ps(to + 8), high[r]));
  }
}

inline __m256i broadcast_quad(const int8_t* from) {
  int32_t quad;
  std::memcpy(&quad, from, 4);
  return _mm256_set1_epi32(quad);
}

// u8 weights times s8 activations, added in pairs to 16 bits, `burst` times before they could overflow, then widened.
template <int ROWS>
void integer_micro(Height<ROWS>, const int8_t* q, const uint8_t* panel, int64_t quads, int burst, bool fresh,
                   int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t j = 0; j < quads;) {
    const int64_t stop = least(quads, j + burst);
    __m256i low[ROWS], high[ROWS];
    for (int r = 0; r < ROWS; ++r) low[r] = high[r] = _mm256_setzero_si256();
    for (; j < stop; ++j, q += 4 * ROWS, panel += 4 * PANEL_N) {
      const __m256i left = load(panel), right = load(panel + 32);
      for (int r = 0; r < ROWS; ++r) {
        const __m256i value = broadcast_quad(q + 4 * r);
        low[r] = _mm256_add_epi16(low[r], _mm256_maddubs_epi16(left, value));
        high[r] = _mm256_add_epi16(high[r], _mm256_maddubs_epi16(right, value));
      }
    }
    for (int r = 0; r < ROWS; ++r) {
      int32_t* to = sums + r * TILE_N;
      __m256i wide_low = _mm256_madd_epi16(low[r], ones), wide_high = _mm256_madd_epi16(high[r], ones);
      if (!fresh) {
        wide_low = _mm256_add_epi32(wide_low, load(to));
        wide_high = _mm256_add_epi32(wide_high, load(to + 8));
      }
      store(to, wide_low);
      store(to + 8, wide_high);
    }
    fresh = false;
  }
}

#include "canonical/tiles.h"

}  // namespace

const Kernels avx2_kernels = {
    pack_rows,        unpack_rows,        dequantize_rows, quantize_rows, hadamard_rows,
    kv_quantize_rows, kv_dequantize_rows, pack_floats,     float_tile,    pack_tokens,
    integer_tile,
};

}  // namespace dfq
