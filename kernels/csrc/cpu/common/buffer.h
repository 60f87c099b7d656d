// Memory of one call.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>

namespace dfq {
namespace {

template <typename T>
std::unique_ptr<T[]> buffer(int64_t count) {
  return std::unique_ptr<T[]>(new T[size_t(std::max<int64_t>(count, 1))]);
}

}  // namespace
}  // namespace dfq
