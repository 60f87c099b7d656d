// unpack_keys, unpack_values and multiply of the instruction set in use.
#pragma once
#include "common/isa.h"

#if DFQ_HAS_AVX512
#include "attention/panels_avx512.h"
#elif DFQ_HAS_AVX2
#include "attention/panels_avx2.h"
#elif DFQ_HAS_NEON
#include "attention/panels_neon.h"
#else
#include "attention/panels_scalar.h"
#endif
