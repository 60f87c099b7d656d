// A pass of a draft on 64-bit ARM.
#include <arm_neon.h>

#include <cstring>

#include "dfq_draft.h"
#include "whole_blocks/draft_kernels.h"

namespace dfq {
namespace {

#define DFQ_NEON
#include "common/convert.h"
#include "common/lanes.h"

constexpr int WEIGHT_ROWS = 2, X_ROWS = 2;  // of a weight and of x whose sums are in registers together

#include "whole_blocks/draft_loops.h"

}  // namespace

const DraftKernels neon_draft = {load_floats, store_floats, dense, nullptr, add_times, attend};

}  // namespace dfq
