// The elementwise work of a decoder block with plain C++.
#include <cmath>
#include <cstring>

#include "dfq_kernels.h"
#include "whole_blocks/block_kernels.h"

namespace dfq {
namespace {

#include "common/convert.h"
#include "whole_blocks/elementwise.h"

}  // namespace

const DecoderKernels scalar_decoder = {norm, add, turn, load_floats, gated};

}  // namespace dfq
