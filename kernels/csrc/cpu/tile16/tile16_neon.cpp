// The tile16 family on 64-bit ARM, what every 64-bit ARM processor has.
#define DFQ_UNIT neon_tiled
#include "tile16/unit_arm.h"
