// float_micro and integer_micro of the instruction set in use.
#pragma once
#include "common/isa.h"

#if DFQ_HAS_AVX2
#include "canonical/micro_avx2.h"
#elif DFQ_HAS_NEON
#include "canonical/micro_neon.h"
#else
#include "canonical/micro_scalar.h"
#endif
