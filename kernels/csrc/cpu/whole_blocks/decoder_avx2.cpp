// The elementwise work of a decoder block with AVX2 and F16C.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "dfq_kernels.h"
#include "whole_blocks/block_kernels.h"

namespace dfq {
namespace {

#include "common/convert.h"
#include "whole_blocks/elementwise.h"

}  // namespace

const DecoderKernels avx2_decoder = {norm, add, turn, load_floats, gated};

}  // namespace dfq
