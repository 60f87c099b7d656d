// Products of the tile16 family with many rows on 64-bit ARM, with the products of four bytes of Armv8.2 (SDOT).
#include <arm_neon.h>

#include <cstring>

#include "../dfq_kernels.h"
#include "gemm.h"

namespace dfq {
namespace {

#define DFQ_NEON
#include "convert.inc"
#include "unroll.inc"
#include "arm.inc"
#include "gemm_arm.inc"

}  // namespace

const GemmKernels dotprod_gemm = {
    HEIGHT,     1,                integer_bytes,  float_bytes, pack_integer, pack_float,
    work_bytes, multiply_integer, multiply_float,
};

}  // namespace dfq
