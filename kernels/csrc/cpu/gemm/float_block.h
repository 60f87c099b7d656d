// float_block of the instruction set in use.
#pragma once
#include "common/isa.h"

#if DFQ_HAS_AVX2
#include "gemm/float_block_avx2.h"
#elif DFQ_HAS_NEON
#include "gemm/float_block_neon.h"
#endif
