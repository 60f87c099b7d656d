// The elementwise work of a decoder block on 64-bit ARM.
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "dfq_kernels.h"
#include "whole_blocks/block_kernels.h"

namespace dfq {
namespace {

#define DFQ_NEON
#include "common/convert.h"
#include "whole_blocks/elementwise.h"

}  // namespace

const DecoderKernels neon_decoder = {norm, add, turn, load_floats, gated};

}  // namespace dfq
