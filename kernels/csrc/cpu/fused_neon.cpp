// Fused row kernels on 64-bit ARM: the row stays in cache between the steps of kernels.h.
#include "fused.h"

#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "../dfq_kernels.h"
#include "kernels.h"

namespace dfq {
namespace {

#define DFQ_NEON
#include "convert.inc"
#include "fused.inc"
#include "turn_quantize.inc"

}  // namespace

const FusedKernels neon_fused = {turn_quantize_rows, norm_row, silu_mul_row};

}  // namespace dfq
