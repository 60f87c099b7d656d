// The tile16 family on 64-bit ARM, with the byte and bfloat16 products of Armv8.6.
#include <arm_neon.h>

#include <cstring>

#include "../dfq_kernels.h"
#include "tiled.h"

namespace dfq {
namespace {

constexpr int64_t AHEAD = 1024;

#define DFQ_NEON
#include "convert.inc"
#include "arm.inc"
#include "height.inc"
#include "tiled_pack.inc"
#include "tiled_arm.inc"
#include "tiled_rows.inc"

}  // namespace

const TiledKernels i8mm_tiled = {
    pack_tiles,   unpack_tiles,  sum_codes,       float_bytes,    prepare_float,
    decode_float, integer_bytes, prepare_integer, decode_integer,
};

}  // namespace dfq
