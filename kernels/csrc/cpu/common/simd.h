// The intrinsics of the instruction set in use, and the helpers that its families share.
#pragma once
#include "common/isa.h"

#if DFQ_HAS_AVX512
#include "common/simd_avx512.h"
#elif DFQ_HAS_AVX2
#include "common/simd_avx2.h"
#elif DFQ_HAS_NEON
#include "common/simd_neon.h"
#endif
