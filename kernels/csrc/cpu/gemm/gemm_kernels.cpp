// Products of many rows with prepacked weights, once per instruction set.
#include "gemm/gemm_kernels.h"

#include "common/isa.h"
#include "gemm/integer.h"
#if DFQ_HAS_AVX512
#include "gemm/bfloat16_avx512.h"
#elif DFQ_HAS_I8MM
#include "gemm/bfloat16_i8mm.h"
#else
#include "gemm/float32.h"
#endif

namespace dfq::DFQ_ISA {

const GemmKernels gemm_table = {
    HEIGHT,
    DFQ_HAS_AVX512 ? VECTORS : 1,
    integer_bytes,
#if DFQ_HAS_I8MM
    value_bytes,
    pack_integer,
    pack_values,
    work_bytes,
    multiply_integer,
    multiply_values,
#else
    float_bytes,
    pack_integer,
    pack_float,
    work_bytes,
    multiply_integer,
    multiply_float,
#endif
};

}  // namespace dfq::DFQ_ISA
