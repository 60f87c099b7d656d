// Products with weights in the canonical layout, once per instruction set.
#include "canonical/canonical_kernels.h"

#include "canonical/dequantize.h"
#include "canonical/tiles.h"
#include "common/isa.h"

namespace dfq::DFQ_ISA {

const CanonicalKernels canonical_table = {
    dequantize_rows, pack_floats, float_tile, pack_tokens, integer_tile,
};

}  // namespace dfq::DFQ_ISA
