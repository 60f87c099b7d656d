// Attention on the packed cache on 64-bit ARM, what every 64-bit ARM processor has.
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "../dfq_kernels.h"
#include "attention.h"
#include "kernels.h"

namespace dfq {
namespace {

#define DFQ_NEON
#include "convert.inc"
#include "attention.inc"
#include "arm.inc"
#include "attention_arm.inc"

}  // namespace

const AttentionKernels neon_attention = {
    padded_width, load_floats, prepare_queries, stretch_memory, attend_stretch, attend_exact, combine_partials,
};

}  // namespace dfq
