// build_quads, sum_quads and spread_quads of the instruction set in use.
#pragma once
#include "common/isa.h"

#if DFQ_HAS_AVX2
#include "canonical/quads_avx2.h"
#else
#include "canonical/quads_scalar.h"
#endif
