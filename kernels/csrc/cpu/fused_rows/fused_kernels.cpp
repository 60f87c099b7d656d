// Fused row kernels, the instruction set every machine has: the row stays in cache between the steps of kernels.h.
#include "fused_rows/fused_kernels.h"

#include <cmath>
#include <cstring>

#include "dfq_kernels.h"
#include "rows/row_kernels.h"

namespace dfq {
namespace {

#include "common/convert.h"
#include "fused_rows/fused_rows.h"
#include "fused_rows/hadamard_quantize.h"

}  // namespace

const FusedKernels scalar_fused = {turn_quantize_rows, norm_row, silu_mul_row};

}  // namespace dfq
