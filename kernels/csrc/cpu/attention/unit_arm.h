// Attention on the packed cache on 64-bit ARM: a translation unit whose table goes by the name
// DFQ_UNIT. Those that include it differ in the compiler's flags alone.
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "dfq_kernels.h"
#include "attention/attention_kernels.h"
#include "rows/row_kernels.h"

namespace dfq {
namespace {

#define DFQ_NEON
#include "common/convert.h"
#include "attention/attend.h"
#include "common/simd_neon.h"
#include "attention/attention_neon.h"

}  // namespace

const AttentionKernels DFQ_UNIT = {
    padded_width, load_floats, prepare_queries, stretch_memory, attend_stretch, attend_exact, combine_partials,
};

}  // namespace dfq
