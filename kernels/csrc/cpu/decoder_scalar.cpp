// The elementwise work of a decoder block with plain C++.
#include <cmath>
#include <cstring>

#include "../dfq_kernels.h"
#include "decoder.h"

namespace dfq {
namespace {

#include "convert.inc"
#include "decoder.inc"

}  // namespace

const DecoderKernels scalar_decoder = {norm, add, turn, load_floats, gated};

}  // namespace dfq
