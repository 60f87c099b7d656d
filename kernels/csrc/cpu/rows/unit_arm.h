// The rows and canonical products on 64-bit ARM: a translation unit whose table goes by the name
// DFQ_UNIT. Those that include it differ in the compiler's flags alone.
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "dfq_kernels.h"
#include "rows/row_kernels.h"

namespace dfq {
namespace {

constexpr int64_t CHUNK = 1024;  // values of a row that are converted and kept in cache; fills whole bytes when packed

#define DFQ_NEON
#include "common/convert.h"
#include "rows/packing.h"
#include "rows/range.h"
#include "rows/rows_neon.h"
#include "rows/quantize.h"
#include "common/simd_neon.h"
#include "common/height.h"
#include "canonical/micro_neon.h"
#include "canonical/quads.h"
#include "canonical/tiles.h"

}  // namespace

const Kernels DFQ_UNIT = {
    pack_rows,        unpack_rows,        dequantize_rows, quantize_rows, hadamard_rows,
    kv_quantize_rows, kv_dequantize_rows, pack_floats,     float_tile,    pack_tokens,
    integer_tile,
};

}  // namespace dfq
