// The rows and canonical products on 64-bit ARM, what every 64-bit ARM processor has.
#define DFQ_UNIT neon_kernels
#include "rows/unit_arm.h"
