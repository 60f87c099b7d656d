// integer_block and float_block of the instruction set in use.
#pragma once
#include "common/isa.h"

#if DFQ_HAS_AVX2
#include "tile16/blocks_avx2.h"
#elif DFQ_HAS_NEON
#include "tile16/blocks_neon.h"
#else
#include "tile16/blocks_scalar.h"
#endif
