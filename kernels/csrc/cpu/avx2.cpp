// AVX2 + FMA + F16C. Compiled with those flags, called only on processors that have them.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../dfq_kernels.h"
#include "kernels.h"

namespace dfq {
namespace {
#include "portable.inc"

inline float sum_lanes(__m256 v) {
  __m128 low = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  low = _mm_add_ps(low, _mm_movehl_ps(low, low));
  return _mm_cvtss_f32(_mm_add_ss(low, _mm_movehdup_ps(low)));
}

inline int32_t sum_lanes(__m256i v) {
  __m128i low = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  low = _mm_add_epi32(low, _mm_shuffle_epi32(low, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(low, _mm_shuffle_epi32(low, 0xb1)));
}

// The stages inside one register are swaps with signs, the others are plain butterflies.
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

void hadamard_rows(const void* x, int type, int64_t block, const float* base, int64_t order, void* out, float* scratch,
                   int64_t begin, int64_t end) {
  hadamard_with(transform, x, type, block, base, order, out, scratch, begin, end);
}

// ROWS tokens times COLS dequantized weight rows, each a dot product over k.
template <int ROWS, int COLS>
void float_tile(const float* x, const float* w, int64_t k, float* out, int64_t stride) {
  __m256 sums[ROWS][COLS];
  for (auto& row : sums)
    for (auto& sum : row) sum = _mm256_setzero_ps();
  int64_t j = 0;
  for (; j + 8 <= k; j += 8) {
    __m256 weights[COLS];
    for (int c = 0; c < COLS; ++c) weights[c] = _mm256_loadu_ps(w + c * k + j);
    for (int r = 0; r < ROWS; ++r) {
      const __m256 value = _mm256_loadu_ps(x + r * k + j);
      for (int c = 0; c < COLS; ++c) sums[r][c] = _mm256_fmadd_ps(value, weights[c], sums[r][c]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int c = 0; c < COLS; ++c) {
      float sum = sum_lanes(sums[r][c]);
      for (int64_t tail = j; tail < k; ++tail) sum += x[r * k + tail] * w[c * k + tail];
      out[r * stride + c] = sum;
    }
  }
}

template <int COLS>
void float_columns(const float* x, int64_t m, const float* w, int64_t k, float* out, int64_t stride) {
  int64_t row = 0;
  for (; row + 4 <= m; row += 4) float_tile<4, COLS>(x + row * k, w, k, out + row * stride, stride);
  for (; row < m; ++row) float_tile<1, COLS>(x + row * k, w, k, out + row * stride, stride);
}

void unpack32(const uint8_t* packed, uint8_t* codes) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
  const __m128i mask = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(bytes, mask), high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm_unpacklo_epi8(low, high));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 16), _mm_unpackhi_epi8(low, high));
}

void unpack_row_fast(const uint8_t* packed, int64_t k, int64_t stride, uint8_t* codes) {
  int64_t j = 0;
  for (; j + 32 <= k; j += 32) unpack32(packed + j / 2, codes + j);
  unpack_row(packed + j / 2, k - j, stride - j, codes + j);
}

void dequantize_row_fast(const Weight& weight, int64_t n, float* out) {
  if (weight.group % 32) return dequantize_row(weight, n, out);
  const uint8_t* packed = weight.packed + n * ((weight.k + 1) / 2);
  for (int64_t group = 0; group < weight.groups; ++group) {
    const int64_t first = weight.group ? group * weight.group : 0, last = group_end(weight, group);
    const float scale = scale_of(weight, n, group);
    const int32_t zero = zero_of(weight, n, group);
    const __m256 scales = _mm256_set1_ps(scale);
    const __m256i zeros = _mm256_set1_epi32(zero);
    alignas(32) uint8_t codes[32];
    int64_t j = first;
    for (; j + 32 <= last; j += 32) {
      unpack32(packed + j / 2, codes);
      for (int i = 0; i < 32; i += 8) {
        const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i)));
        const __m256 value = _mm256_cvtepi32_ps(_mm256_sub_epi32(wide, zeros));
        _mm256_storeu_ps(out + j + i, _mm256_mul_ps(value, scales));
      }
    }
    for (; j < last; ++j) {
      const int32_t code = j % 2 ? packed[j / 2] >> 4 : packed[j / 2] & 15;
      out[j] = float(code - zero) * scale;
    }
  }
}

void float_mm(const float* x, int64_t m, const Weight& weight, float* scratch, float* out, int64_t begin, int64_t end) {
  const int64_t k = weight.k;
  for (int64_t n = begin; n < end; ++n) dequantize_row_fast(weight, n, scratch + (n - begin) * k);
  int64_t n = begin;
  for (; n + 2 <= end; n += 2) float_columns<2>(x, m, scratch + (n - begin) * k, k, out + n, weight.n);
  for (; n < end; ++n) float_columns<1>(x, m, scratch + (n - begin) * k, k, out + n, weight.n);
}

// Integer dot products of ROWS x COLS over `count` bytes (a multiple of 32): u8 weights times s8 activations are
// added in pairs to 16 bits, `burst` times before they would overflow, then widened to 32 bits.
template <int ROWS, int COLS>
inline void integer_tile(const int8_t* q, int64_t q_stride, const uint8_t* u, int64_t u_stride, int64_t count, int burst,
                         int32_t sums[ROWS][COLS]) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i wide[ROWS][COLS];
  for (auto& row : wide)
    for (auto& sum : row) sum = _mm256_setzero_si256();
  for (int64_t j = 0; j < count;) {
    const int64_t stop = std::min(count, j + int64_t(burst) * 32);
    __m256i narrow[ROWS][COLS];
    for (auto& row : narrow)
      for (auto& sum : row) sum = _mm256_setzero_si256();
    for (; j < stop; j += 32) {
      __m256i weights[COLS];
      for (int c = 0; c < COLS; ++c)
        weights[c] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(u + c * u_stride + j));
      for (int r = 0; r < ROWS; ++r) {
        const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + r * q_stride + j));
        for (int c = 0; c < COLS; ++c)
          narrow[r][c] = _mm256_add_epi16(narrow[r][c], _mm256_maddubs_epi16(weights[c], codes));
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int c = 0; c < COLS; ++c)
        wide[r][c] = _mm256_add_epi32(wide[r][c], _mm256_madd_epi16(narrow[r][c], ones));
  }
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < COLS; ++c) sums[r][c] = sum_lanes(wide[r][c]);
}

template <int ROWS, int COLS>
void integer_block(const Tokens& tokens, const Weight& weight, int burst, const uint8_t* codes,
                   const int32_t* code_sums, int64_t m, int64_t n, float* out) {
  const int64_t stride = tokens.stride;
  float totals[ROWS][COLS] = {};
  for (int64_t group = 0; group < weight.groups; ++group) {
    const int64_t first = weight.group ? group * weight.group : 0;
    const int64_t last = group + 1 == weight.groups ? stride : first + weight.group;  // the padding is zero
    int32_t sums[ROWS][COLS];
    integer_tile<ROWS, COLS>(tokens.codes + m * stride + first, stride, codes + first, stride, last - first, burst, sums);
    for (int r = 0; r < ROWS; ++r)
      for (int c = 0; c < COLS; ++c)
        totals[r][c] += group_term(tokens, weight, m + r, n + c, group, sums[r][c], code_sums[c * weight.groups + group]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < COLS; ++c) out[(m + r) * weight.n + n + c] = totals[r][c] * tokens.scale[m + r];
}

template <int COLS>
void integer_columns(const Tokens& tokens, const Weight& weight, int burst, const uint8_t* codes,
                     const int32_t* code_sums, int64_t n, float* out) {
  int64_t m = 0;
  for (; m + 4 <= tokens.m; m += 4) integer_block<4, COLS>(tokens, weight, burst, codes, code_sums, m, n, out);
  for (; m < tokens.m; ++m) integer_block<1, COLS>(tokens, weight, burst, codes, code_sums, m, n, out);
}

void integer_mm(const Tokens& tokens, const Weight& weight, int a_bits, uint8_t* scratch, float* out, int64_t begin,
                int64_t end) {
  if (weight.group % 32) return integer_mm_portable(tokens, weight, scratch, out, begin, end);
  // a pair of products is at most 2 * 15 * 2^(a_bits - 1) in size, and 16 bits hold 32767
  const int burst = 32767 / (2 * 15 * (1 << (a_bits - 1)));
  const int64_t stride = tokens.stride;
  int32_t* code_sums = reinterpret_cast<int32_t*>(scratch + (end - begin) * stride);
  for (int64_t n = begin; n < end; ++n) {
    uint8_t* codes = scratch + (n - begin) * stride;
    unpack_row_fast(weight.packed + n * ((weight.k + 1) / 2), weight.k, stride, codes);
    for (int64_t group = 0; group < weight.groups; ++group) {
      const int64_t first = weight.group ? group * weight.group : 0;
      const int64_t last = group + 1 == weight.groups ? stride : first + weight.group;
      __m256i sum = _mm256_setzero_si256();
      for (int64_t j = first; j < last; j += 32) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + j));
        sum = _mm256_add_epi64(sum, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
      }
      code_sums[(n - begin) * weight.groups + group] = sum_lanes(sum);  // the high halves are zero
    }
  }
  int64_t n = begin;
  for (; n + 2 <= end; n += 2)
    integer_columns<2>(tokens, weight, burst, scratch + (n - begin) * stride, code_sums + (n - begin) * weight.groups, n, out);
  for (; n < end; ++n)
    integer_columns<1>(tokens, weight, burst, scratch + (n - begin) * stride, code_sums + (n - begin) * weight.groups, n, out);
}

}  // namespace

const Kernels avx2_kernels = {quantize_rows, hadamard_rows, to_float,         from_float,
                              float_mm,      integer_mm,    kv_quantize_rows, kv_dequantize_rows};

}  // namespace dfq
