// The Sylvester-Hadamard transform of `size` (a power of two) floats in place in plain C++, unnormalised.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "hadamard/butterflies.h"

namespace dfq::DFQ_ISA {
namespace {

inline void transform(float* x, int64_t size) { butterflies(x, size, 1); }

}  // namespace
}  // namespace dfq::DFQ_ISA
