// The scratch memory of one chunk of work, cut into its arrays.
#pragma once
#include <cstdint>

#include "common/integers.h"
#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

struct ScratchLayout {
  char* next;
  int64_t size = 0;
  template <typename T>
  T* take(int64_t count) {
    T* const here = reinterpret_cast<T*>(next + size);
    size += ceil_div(count * int64_t(sizeof(T)), 64) * 64;
    return here;
  }
};

}  // namespace
}  // namespace dfq::DFQ_ISA
