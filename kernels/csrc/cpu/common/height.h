// Number of rows of a block as a type.
#pragma once
#include <cstdint>

#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

template <int HEIGHT>
struct Height {};

// Calls f(Height<rows>) with the number of rows as a constant, so that a micro-kernel keeps its sums in registers.
template <typename Function>
inline void with_height(int64_t rows, Function f) {
  switch (rows) {
    case 1: return f(Height<1>());
    case 2: return f(Height<2>());
    case 3: return f(Height<3>());
    case 4: return f(Height<4>());
    case 5: return f(Height<5>());
    default: return f(Height<6>());
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
