// A pass of a draft with plain C++.
#include <cstring>

#include "../dfq_draft.h"
#include "draft.h"

namespace dfq {
namespace {

#include "convert.inc"
#include "lanes.inc"

constexpr int WEIGHT_ROWS = 2, X_ROWS = 2;  // of a weight and of x whose sums are in registers together

#include "draft.inc"

}  // namespace

const DraftKernels scalar_draft = {load_floats, store_floats, dense, nullptr, add_times, attend};

}  // namespace dfq
