// The C interface of the fused row kernels: argument checks, memory, partition over threads. Rows are independent.
#include <algorithm>

#include "common/kernels.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "dfq_abi.h"
#include "hadamard/transform.h"

namespace dfq {
namespace {

// Runs function(row, scratch floats) for every row of k values; the scratch holds k + 2 * block floats, the transposed
// base stands in `turned`.
template <typename Function>
int over_quantized(int64_t m, int64_t k, const Turn& turn, const Quantized& out, int64_t threads, Function function) {
  if (!valid_bits(out.bits) || !turn.valid(k)) return DFQ_BAD_ARGUMENT;
  return guarded([&] {
    float* const base_t = static_cast<float*>(scratch(SCRATCH_CALLER, (turn.floats() + 1) * 4));
    turn.transpose(base_t);
    const Turned turned = {turn.base ? base_t : nullptr, turn.order, turn.block};
    over_rows(m, k, threads, [&](int64_t begin, int64_t end) {
      float* const row = static_cast<float*>(scratch(SCRATCH_WORKER, (2 * k + 2 * turn.block + 32) * 4));
      function(turned, row, begin, end);
    });
  });
}

}  // namespace
}  // namespace dfq

using namespace dfq;

int dfq_hadamard_quantize(const void* x, int64_t type, int64_t m, int64_t k, const float* base, int64_t order,
                          int64_t block, int64_t bits, int64_t symmetric, float clip, int8_t* codes, float* scale,
                          int32_t* zero, int64_t threads) {
  if (!valid_type(type)) return DFQ_BAD_ARGUMENT;
  const FusedKernels& use = kernels().fused;
  const Quantized out = {int(bits), symmetric != 0, clip, codes, scale, zero};
  return over_quantized(m, k, {base, order, block}, out, threads,
                        [&](const Turned& turned, float* row, int64_t begin, int64_t end) {
                          use.turn_quantize(x, int(type), k, turned, out, row, begin, end);
                        });
}

int dfq_rmsnorm_quantize(const void* x, int64_t type, int64_t m, int64_t k, void* residual, const void* weight,
                         float epsilon, int64_t bits, int64_t symmetric, float clip, int8_t* codes, float* scale,
                         int32_t* zero, int64_t threads) {
  if (!valid_type(type)) return DFQ_BAD_ARGUMENT;
  const FusedKernels& use = kernels().fused;
  const Quantized out = {int(bits), symmetric != 0, clip, codes, scale, zero};
  const NormedRows rows = {x, residual, weight, int(type), k, epsilon};
  return over_quantized(m, k, {nullptr, 0, 0}, out, threads,
                        [&](const Turned& turned, float* row, int64_t begin, int64_t end) {
                          for (int64_t r = begin; r < end; ++r) {
                            use.norm(rows, r, row);
                            const Quantized one = {out.bits,       out.symmetric, clip, codes + r * k,
                                                   scale + r, zero + r};
                            use.turn_quantize(row, DFQ_FLOAT32, k, turned, one, row + k, 0, 1);
                          }
                        });
}

int dfq_silu_mul_hadamard_quantize(const void* gate, const void* up, int64_t type, int64_t m, int64_t k,
                                   const float* base, int64_t order, int64_t block, int64_t bits, int64_t symmetric,
                                   float clip, int8_t* codes, float* scale, int32_t* zero, int64_t threads) {
  if (!valid_type(type)) return DFQ_BAD_ARGUMENT;
  const FusedKernels& use = kernels().fused;
  const Quantized out = {int(bits), symmetric != 0, clip, codes, scale, zero};
  return over_quantized(m, k, {base, order, block}, out, threads,
                        [&](const Turned& turned, float* row, int64_t begin, int64_t end) {
                          for (int64_t r = begin; r < end; ++r) {
                            use.silu_mul(gate, up, int(type), r * k, k, row);
                            const Quantized one = {out.bits,       out.symmetric, clip, codes + r * k,
                                                   scale + r, zero + r};
                            use.turn_quantize(row, DFQ_FLOAT32, k, turned, one, row + k, 0, 1);
                          }
                        });
}
