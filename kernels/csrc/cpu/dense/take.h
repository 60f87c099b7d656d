// Sixteen values of a row of float32, bfloat16 or 8-bit codes as float32.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/isa.h"
#include "common/lanes.h"
#include "dfq_abi.h"
#if DFQ_HAS_AVX512
#include "dense/take_avx512.h"
#else
#include "dense/take_portable.h"
#endif

namespace dfq::DFQ_ISA {
namespace {

template <int KIND>
constexpr int64_t bytes_of() {
  return KIND == DFQ_FLOAT32 ? 4 : KIND == DFQ_BFLOAT16 ? 2 : 1;
}

// The same of `count` values; what lies behind them counts as zero once it meets a zero of the other factor.
template <int KIND>
inline __attribute__((always_inline)) void load_some_of(const void* x, int64_t at, int64_t count, Floats& to) {
  alignas(64) char part[64] = {};
  std::memcpy(part, static_cast<const char*>(x) + at * bytes_of<KIND>(), size_t(count * bytes_of<KIND>()));
  load_lanes_of<KIND>(part, 0, to);
}

}  // namespace
}  // namespace dfq::DFQ_ISA
