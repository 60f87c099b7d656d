// Attention on the packed cache on 64-bit ARM, with the products of four bytes of Armv8.2 (SDOT).
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

const AttentionKernels dotprod_attention = {
    padded_width, load_floats, prepare_queries, stretch_memory, attend_stretch, attend_exact, combine_partials,
};

}  // namespace dfq
