// multiply_add of the instruction set in use.
#pragma once
#include "common/isa.h"

#if DFQ_HAS_AVX512
#include "gemm/multiply_add_avx512.h"
#elif DFQ_HAS_AVX2
#include "gemm/multiply_add_avx2.h"
#elif DFQ_HAS_NEON
#include "gemm/multiply_add_neon.h"
#endif
