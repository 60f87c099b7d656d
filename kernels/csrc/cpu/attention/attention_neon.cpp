// Attention on the packed cache on 64-bit ARM, what every 64-bit ARM processor has.
#define DFQ_UNIT neon_attention
#include "attention/unit_arm.h"
