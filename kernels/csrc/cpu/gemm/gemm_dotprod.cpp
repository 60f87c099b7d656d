// Products of the tile16 family with many rows on 64-bit ARM, with the products of four bytes of Armv8.2 (SDOT).
#define DFQ_UNIT dotprod_gemm
#include "gemm/unit_arm.h"
