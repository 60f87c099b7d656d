// Packing, quantization and Hadamard transforms of rows, once per instruction set.
#include "rows/row_kernels.h"

#include "common/isa.h"
#include "hadamard/hadamard.h"
#include "rows/packing.h"
#include "rows/quantize.h"

namespace dfq::DFQ_ISA {

const RowKernels row_table = {
    pack_rows, unpack_rows, quantize_rows, hadamard_rows, kv_quantize_rows, kv_dequantize_rows,
};

}  // namespace dfq::DFQ_ISA
