// A base of signs times parts of a vector, four parts at a time: the 16 signed sums of a group of four are formed once
// and every output adds one of them per group, which takes a third of the additions of the plain product. Entry 16 g +
// c: the sum of group g whose term a is negative where bit a of c is set, as (+-x0 +-x1) + (+-x2 +-x3).
#pragma once
#include <cstdint>

#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int64_t SIGN_ORDER = 256;  // larger bases take the plain product

bool has_signs(const float* base, int64_t order) {
  if (order < 4 || order % 4 || order > SIGN_ORDER) return false;
  int others = 0;
  for (int64_t i = 0; i < order * order; ++i) others |= (base[i] != 1.0f) & (base[i] != -1.0f);
  return others == 0;
}

// base_t [order][order] -> table entry of output j and group g in entries[j * order / 4 + g]
void find_entries(const float* base_t, int64_t order, uint16_t* entries) {
  for (int64_t at = 0; at < order * order; at += 4, base_t += 4) {
    int code = 0;
    for (int a = 0; a < 4; ++a) code |= (base_t[a] < 0.0f) << a;
    entries[at / 4] = uint16_t(at % order / 4 * 16 + code);
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
