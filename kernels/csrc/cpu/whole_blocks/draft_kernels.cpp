// Attention and residuals of a pass of a draft, once per instruction set.
#include "whole_blocks/draft_kernels.h"

#include "common/isa.h"
#include "whole_blocks/draft_attention.h"

namespace dfq::DFQ_ISA {

const DraftKernels draft_table = {add_scaled, attend};

}  // namespace dfq::DFQ_ISA
