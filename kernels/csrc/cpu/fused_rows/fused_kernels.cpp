// Row kernels of several steps, once per instruction set. With AVX-512 also quantization and transforms of rows, which
// are the same code without the steps before or after.
#include "fused_rows/fused_kernels.h"

#include "common/isa.h"
#include "fused_rows/fused_rows.h"
#if DFQ_HAS_AVX512
#include "fused_rows/hadamard_quantize_avx512.h"
#else
#include "fused_rows/hadamard_quantize.h"
#endif

namespace dfq::DFQ_ISA {

const FusedKernels fused_table = {hadamard_quantize_rows, norm_row, silu_mul_row};
#if DFQ_HAS_AVX512
const decltype(RowKernels::quantize_rows) quantize_rows_entry = quantize_rows;
const decltype(RowKernels::hadamard_rows) hadamard_rows_entry = hadamard_rows;
#endif

}  // namespace dfq::DFQ_ISA
