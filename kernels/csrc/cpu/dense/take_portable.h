// Sixteen values of any storage as float32, and the sum of sixteen lanes, with the compiler's vectors.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/isa.h"
#include "common/lanes.h"
#include "dfq_abi.h"

namespace dfq::DFQ_ISA {
namespace {

typedef uint16_t Shorts __attribute__((vector_size(32)));
typedef uint8_t Codes __attribute__((vector_size(16)));

// Sixteen values of x from element `at` on as float32; 8-bit codes as they are, less their zero point.
template <int KIND>
inline __attribute__((always_inline)) void load_lanes_of(const void* x, int64_t at, Floats& to) {
  if constexpr (KIND == DFQ_FLOAT32) {
    load_lanes(static_cast<const float*>(x) + at, to);
  } else if constexpr (KIND == DFQ_BFLOAT16) {
    Shorts in;
    std::memcpy(&in, static_cast<const uint16_t*>(x) + at, 32);
    to = Floats(__builtin_convertvector(in, Ints) << 16);
  } else {
    Codes in;
    std::memcpy(&in, static_cast<const uint8_t*>(x) + at, 16);
    to = __builtin_convertvector(__builtin_convertvector(in, Ints) - 128, Floats);
  }
}

inline float total(const Floats& v) { return reduce_sum_lanes(v); }

}  // namespace
}  // namespace dfq::DFQ_ISA
