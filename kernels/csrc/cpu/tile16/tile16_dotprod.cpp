// The tile16 family on 64-bit ARM, with the products of four bytes of Armv8.2 (SDOT).
#define DFQ_UNIT dotprod_tiled
#include "tile16/unit_arm.h"
