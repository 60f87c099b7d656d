// Products of the tile16 family with many rows on 64-bit ARM: a translation unit whose table goes by the name
// DFQ_UNIT. Those that include it differ in the compiler's flags alone.
#include <arm_neon.h>

#include <cstring>

#include "dfq_kernels.h"
#include "gemm/gemm_kernels.h"

namespace dfq {
namespace {

#define DFQ_NEON
#include "common/convert.h"
#include "common/unroll.h"
#include "common/simd_neon.h"
#include "gemm/micro_neon.h"

}  // namespace

const GemmKernels DFQ_UNIT = {
    HEIGHT,     1,                integer_bytes,  float_bytes, pack_integer, pack_float,
    work_bytes, multiply_integer, multiply_float,
};

}  // namespace dfq
