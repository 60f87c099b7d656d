// AVX-512 (VNNI, BF16, VBMI): the tile16 family. Called only on processors that have all of it.
#include <immintrin.h>

#include "../dfq_kernels.h"
#include "tiled.h"
