// The elementwise work of a decoder block, once per instruction set.
#include "whole_blocks/block_kernels.h"

#include "common/convert.h"
#include "common/isa.h"
#include "whole_blocks/elementwise.h"

namespace dfq::DFQ_ISA {

const BlockKernels block_table = {norm, add, turn, load_floats, gated};

}  // namespace dfq::DFQ_ISA
