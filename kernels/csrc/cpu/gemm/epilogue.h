// sum_bytes and finish of the instruction set in use.
#pragma once
#include "common/isa.h"

#if DFQ_HAS_AVX512
#include "gemm/epilogue_avx512.h"
#else
#include "gemm/epilogue_portable.h"
#endif
