// Attention on the packed cache on 64-bit ARM, with the products of four bytes of Armv8.2 (SDOT).
#define DFQ_UNIT dotprod_attention
#include "attention/unit_arm.h"
