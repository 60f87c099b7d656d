// Small functions of sizes. In an anonymous namespace, so that each unit has its own copy (see isa.h); std::min and
// std::max are templates with external linkage.
#pragma once
#include <cstdint>

namespace dfq {
namespace {

constexpr int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }  // rounded up

}  // namespace
}  // namespace dfq
