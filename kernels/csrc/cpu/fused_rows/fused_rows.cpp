// The C interface of the fused row kernels: argument checks, memory, partition over threads. Rows are independent.
#include <algorithm>

#include "common/kernels.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "dfq_abi.h"
#include "hadamard/hadamard_argument.h"

namespace dfq {
namespace {

// Runs function(row, scratch floats) for every row of k values; the scratch holds k + 2 * block floats, the transposed
// base stands in `turned`.
template <typename Function>
int quantize_rows_of(int64_t m, int64_t k, const HadamardArgument& hadamard, const Quantized& out, int64_t threads,
                     Function function) {
  if (!valid_bits(out.bits) || !hadamard.valid(k)) return DFQ_BAD_ARGUMENT;
  return returning_status([&] {
    float* const base_t = static_cast<float*>(scratch(SCRATCH_CALLER, (hadamard.floats() + 1) * 4));
    hadamard.transpose(base_t);
    const TransposedHadamard transposed = {hadamard.base ? base_t : nullptr, hadamard.order, hadamard.block};
    parallel_rows(m, k, threads, [&](int64_t begin, int64_t end) {
      float* const row = static_cast<float*>(scratch(SCRATCH_WORKER, (2 * k + 2 * hadamard.block + 32) * 4));
      function(transposed, row, begin, end);
    });
  });
}

}  // namespace
}  // namespace dfq

using namespace dfq;

int dfq_hadamard_quantize(const dfq_hadamard_quantize_args* args) {
  if (!valid_type(args->dtype)) return DFQ_BAD_ARGUMENT;
  const FusedKernels& use = kernels().fused;
  const Quantized out = {int(args->bits), args->symmetric != 0, float(args->clip),
                         args->codes,     args->scale,          args->zero};
  return quantize_rows_of(args->m, args->k, {args->base, args->order, args->block}, out, args->threads,
                        [&](const TransposedHadamard& transposed, float* row, int64_t begin, int64_t end) {
                          use.hadamard_quantize(args->x, int(args->dtype), args->k, transposed, out, row, begin, end);
                        });
}

int dfq_rmsnorm_quantize(const dfq_rmsnorm_quantize_args* args) {
  if (!valid_type(args->dtype)) return DFQ_BAD_ARGUMENT;
  const FusedKernels& use = kernels().fused;
  const Quantized out = {int(args->bits), args->symmetric != 0, float(args->clip),
                         args->codes,     args->scale,          args->zero};
  const NormedRows rows = {args->x, args->residual, args->weight, int(args->dtype), args->k, float(args->epsilon)};
  return quantize_rows_of(args->m, args->k, {nullptr, 0, 0}, out, args->threads,
                        [&](const TransposedHadamard& transposed, float* row, int64_t begin, int64_t end) {
                          for (int64_t r = begin; r < end; ++r) {
                            use.norm(rows, r, row);
                            const Quantized one = {out.bits,       out.symmetric, out.clip, args->codes + r * args->k,
                                                   args->scale + r, args->zero + r};
                            use.hadamard_quantize(row, DFQ_FLOAT32, args->k, transposed, one, row + args->k, 0, 1);
                          }
                        });
}

int dfq_silu_mul_hadamard_quantize(const dfq_silu_mul_hadamard_quantize_args* args) {
  if (!valid_type(args->dtype)) return DFQ_BAD_ARGUMENT;
  const FusedKernels& use = kernels().fused;
  const Quantized out = {int(args->bits), args->symmetric != 0, float(args->clip),
                         args->codes,     args->scale,          args->zero};
  return quantize_rows_of(args->m, args->k, {args->base, args->order, args->block}, out, args->threads,
                        [&](const TransposedHadamard& transposed, float* row, int64_t begin, int64_t end) {
                          for (int64_t r = begin; r < end; ++r) {
                            use.silu_mul(args->gate, args->up, int(args->dtype), r * args->k, args->k, row);
                            const Quantized one = {out.bits,       out.symmetric, out.clip, args->codes + r * args->k,
                                                   args->scale + r, args->zero + r};
                            use.hadamard_quantize(row, DFQ_FLOAT32, args->k, transposed, one, row + args->k, 0, 1);
                          }
                        });
}
