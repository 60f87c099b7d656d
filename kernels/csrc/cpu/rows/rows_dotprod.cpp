// The rows and canonical products on 64-bit ARM, with the products of four bytes of Armv8.2 (SDOT).
#define DFQ_UNIT dotprod_kernels
#include "rows/unit_arm.h"
