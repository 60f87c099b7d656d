// Attention on the packed cache, once per instruction set.
#include "attention/attention_kernels.h"

#include "attention/attend.h"
#include "attention/fixed_point.h"
#include "attention/sinks.h"
#include "common/convert.h"
#include "common/isa.h"

namespace dfq::DFQ_ISA {

const AttentionKernels attention_table = {
    padded_width, load_floats, store_floats, quantize_queries, split_memory, attend_split, attend_sinks, merge_partials,
};

}  // namespace dfq::DFQ_ISA
