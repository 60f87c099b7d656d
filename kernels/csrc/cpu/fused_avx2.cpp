// Fused row kernels, AVX2: the row stays in cache between the steps of kernels.h.
#include "fused.h"

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "../dfq_kernels.h"
#include "kernels.h"

namespace dfq {
namespace {

#include "convert.inc"
#include "fused.inc"
#include "turn_quantize.inc"

}  // namespace

const FusedKernels avx2_fused = {turn_quantize_rows, norm_row, silu_mul_row};

}  // namespace dfq
