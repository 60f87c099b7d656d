// The elementwise work of a decoder block, once per instruction set.
#include "whole_blocks/block_kernels.h"

#include "common/convert.h"
#include "common/isa.h"
#include "whole_blocks/elementwise.h"

namespace dfq::DFQ_ISA {

const BlockKernels block_table = {rmsnorm, add, rope, load_floats, silu_mul};

}  // namespace dfq::DFQ_ISA
