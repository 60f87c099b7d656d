// The tile16 family on 64-bit ARM: a translation unit whose table goes by the name
// DFQ_UNIT. Those that include it differ in the compiler's flags alone.
#include <arm_neon.h>

#include <cstring>

#include "dfq_kernels.h"
#include "tile16/tile16_kernels.h"

namespace dfq {
namespace {

constexpr int64_t AHEAD = 1024;

#define DFQ_NEON
#include "common/convert.h"
#include "common/simd_neon.h"
#include "common/height.h"
#include "tile16/prepack.h"
#include "tile16/tile16_neon.h"
#include "tile16/decode_rows.h"

}  // namespace

const TiledKernels DFQ_UNIT = {
    pack_tiles,   unpack_tiles,  sum_codes,       float_bytes,    prepare_float,
    decode_float, integer_bytes, prepare_integer, decode_integer,
};

}  // namespace dfq
