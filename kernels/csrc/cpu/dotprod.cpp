// 64-bit ARM with the products of four bytes of Armv8.2 (SDOT).
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "../dfq_kernels.h"
#include "kernels.h"

namespace dfq {
namespace {

constexpr int64_t CHUNK = 1024;  // values of a row that are converted and kept in cache; fills whole bytes when packed

#define DFQ_NEON
#include "convert.inc"
#include "codes.inc"
#include "range.inc"
#include "rows_arm.inc"
#include "rows.inc"
#include "arm.inc"
#include "height.inc"
#include "micro_arm.inc"
#include "quads.inc"
#include "tiles.inc"

}  // namespace

const Kernels dotprod_kernels = {
    pack_rows,        unpack_rows,        dequantize_rows, quantize_rows, hadamard_rows,
    kv_quantize_rows, kv_dequantize_rows, pack_floats,     float_tile,    pack_tokens,
    integer_tile,
};

}  // namespace dfq
