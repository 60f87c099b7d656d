// Products of the tile16 family with many rows on 64-bit ARM, what every 64-bit ARM processor has.
#define DFQ_UNIT neon_gemm
#include "gemm/unit_arm.h"
