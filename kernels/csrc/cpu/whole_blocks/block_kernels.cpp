// The elementwise work of a decoder block, once per instruction set.
#include "whole_blocks/block_kernels.h"

#include "common/convert.h"
#include "common/isa.h"
#if DFQ_HAS_AVX512
#include "whole_blocks/elementwise_avx512.h"
#else
#include "whole_blocks/elementwise.h"
#endif

namespace dfq::DFQ_ISA {

const BlockKernels block_table = {rmsnorm, add, rope, load_floats, silu_mul};

}  // namespace dfq::DFQ_ISA
