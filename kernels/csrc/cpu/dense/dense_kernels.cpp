// Products with dense weights for a few rows, once per instruction set.
#include "dense/dense_kernels.h"

#include "common/convert.h"
#include "common/isa.h"
#include "dense/dense.h"
#if DFQ_HAS_AVX512
#include "dense/bfloat16_avx512.h"
#include "dense/codes_avx512.h"
#endif

namespace dfq::DFQ_ISA {

#if DFQ_HAS_AVX512
const DenseKernels dense_table = {load_floats, store_floats, dense, dense_bf16, codes_bf16};
#else
const DenseKernels dense_table = {load_floats, store_floats, dense, nullptr, nullptr};
#endif

}  // namespace dfq::DFQ_ISA
