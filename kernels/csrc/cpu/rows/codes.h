// extend and write_codes of the instruction set in use.
#pragma once
#include "common/isa.h"

#if DFQ_HAS_AVX2
#include "rows/codes_avx2.h"
#elif DFQ_HAS_NEON
#include "rows/codes_neon.h"
#else
#include "rows/codes_scalar.h"
#endif
