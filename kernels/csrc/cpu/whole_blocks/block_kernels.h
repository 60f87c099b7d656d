// The elementwise work of a decoder block, per instruction set; decoder.cpp runs whole blocks with it. Values are read and
// written as `type` (DFQ_FLOAT32 ...), computed in float32 and rounded to `type` wherever the torch modules round.
// Nothing inline with external linkage here, see kernels.h.
#pragma once
#include <cstdint>

struct dfq_decoder;

namespace dfq {

struct DecoderKernels {
  // y = weight * round(x / rms(x)), weight [count] as float32
  void (*norm)(const void* x, int type, int64_t count, const float* weight, float eps, void* y);
  // x[from + i] += y[from + i]
  void (*add)(void* x, const void* y, int type, int64_t from, int64_t count);
  // `heads` heads of `dim` values from element `at` on turn by the angles whose cos and sin [dim] are given (RoPE)
  void (*turn)(void* x, int type, int64_t at, int64_t heads, int64_t dim, const float* cos, const float* sin);
  // values x[from + i] as float32
  void (*widen)(const void* x, int type, int64_t from, int64_t count, float* out);
  // out[from + i] = silu(gate[from + i]) * up[from + i]
  void (*gated)(const void* gate, const void* up, int type, int64_t from, int64_t count, void* out);
};

bool valid_decoder(const dfq_decoder& model);  // whether its tables fit together

extern const DecoderKernels scalar_decoder;
#ifdef DFQ_HAVE_AVX2
extern const DecoderKernels avx2_decoder;
#endif
#ifdef DFQ_HAVE_NEON
extern const DecoderKernels neon_decoder;
#endif
#ifdef DFQ_HAVE_AVX512
extern const DecoderKernels avx512_decoder;
#endif

}  // namespace dfq
