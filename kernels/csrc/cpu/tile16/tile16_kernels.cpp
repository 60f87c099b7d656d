// Prepacking, and decode with prepacked weights, once per instruction set.
#include "tile16/tile16_kernels.h"

#include "common/isa.h"
#include "tile16/prepack.h"
#if DFQ_HAS_AVX512
#include "tile16/decode_avx512.h"
#elif DFQ_HAS_I8MM
#include "tile16/decode_i8mm.h"
#else
#include "tile16/decode_rows.h"
#endif

namespace dfq::DFQ_ISA {

#if DFQ_HAS_I8MM
const Tile16Kernels tile16_table = {
    pack_tiles, unpack_tiles,  sum_codes,       value_bytes,    prepare_values,
    decode_any, integer_bytes, prepare_integer, decode_integer,
};
#else
const Tile16Kernels tile16_table = {
    pack_tiles,   unpack_tiles,  sum_codes,       float_bytes,    prepare_float,
    decode_float, integer_bytes, prepare_integer, decode_integer,
};
#endif

}  // namespace dfq::DFQ_ISA
