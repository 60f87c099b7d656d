// Several arrays out of one allocation.
#pragma once
#include <cstdint>

#include "common/integers.h"

namespace dfq {
namespace {

struct Arena {  // one allocation, several arrays
  char* next;
  char* take(int64_t bytes) {
    char* const here = next;
    next += ceil_div(bytes, 64) * 64;
    return here;
  }
  template <typename T>
  T* take(int64_t count) {
    return reinterpret_cast<T*>(take(count * int64_t(sizeof(T))));
  }
};

}  // namespace
}  // namespace dfq
