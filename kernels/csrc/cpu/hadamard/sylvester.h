// transform() of the instruction set in use: the power-of-two part of a Hadamard transform.
#pragma once
#include "common/isa.h"

#if DFQ_HAS_AVX2
#include "hadamard/sylvester_avx2.h"
#elif DFQ_HAS_NEON
#include "hadamard/sylvester_neon.h"
#else
#include "hadamard/sylvester_scalar.h"
#endif
