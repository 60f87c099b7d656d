// Loops that are gone before the compiler looks: the index is a type, so that arrays of registers stay registers.
#pragma once
#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

template <int I>
struct Index {
  constexpr operator int() const { return I; }
};

template <int COUNT, typename Function>
inline __attribute__((always_inline)) void unrolled(Function function) {
  if constexpr (COUNT > 0) {
    unrolled<COUNT - 1>(function);
    function(Index<COUNT - 1>());
  }
}

#define DFQ_EACH(i) [&](auto i) __attribute__((always_inline))

}  // namespace
}  // namespace dfq::DFQ_ISA
