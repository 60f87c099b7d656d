// The vectors of the instruction set in use.
#pragma once
#include "common/isa.h"

#if DFQ_HAS_AVX512
#include "gemm/vectors_avx512.h"
#elif DFQ_HAS_AVX2
#include "gemm/vectors_avx2.h"
#elif DFQ_HAS_NEON
#include "gemm/vectors_neon.h"
#endif
