// The Sylvester-Hadamard transform of `size` (a power of two) floats in place with AVX2, unnormalised.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "common/simd_avx2.h"
#include "hadamard/butterflies.h"

namespace dfq::DFQ_ISA {
namespace {

// The three stages inside one register are swaps with signs, the others are plain butterflies.
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

}  // namespace
}  // namespace dfq::DFQ_ISA
