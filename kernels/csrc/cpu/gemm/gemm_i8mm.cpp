// Products of the tile16 family with many rows on 64-bit ARM, with the matrix products of Armv8.6 (SMMLA, BFMMLA).
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

#include "gemm/bfloat16_neon.h"

int64_t value_bytes(const TiledWeight& w, int type) {
  return type == DFQ_BFLOAT16 ? narrow_bytes(w) : float_bytes(w, type);
}

void pack_values(const GemmCall& call, int64_t begin, int64_t end) {
  if (call.type == DFQ_BFLOAT16) pack_narrow(call, begin, end);
  else pack_float(call, begin, end);
}

void multiply_values(const GemmCall& call, int64_t first, int64_t last, int64_t begin, int64_t end, void* work) {
  if (call.type == DFQ_BFLOAT16) multiply_narrow(call, first, last, begin, end, work);
  else multiply_float(call, first, last, begin, end, work);
}

}  // namespace

const GemmKernels i8mm_gemm = {
    HEIGHT,     1,                integer_bytes,   value_bytes, pack_integer, pack_values,
    work_bytes, multiply_integer, multiply_values,
};

}  // namespace dfq
