// dfq_decode: all blocks of a model in one parallel region. Threads meet where one needs what another computed, five
// times a block; a thread owns tiles of the weights and whole heads of the cache. Residual, norms and the codes of
// activations are computed by every thread for itself: a few microseconds, less than handing them round.
#include "common/parallel.h"
#include "common/thread_team.h"
#include "dfq_abi.h"
#include "tile16/tile16_kernels.h"
#include "whole_blocks/decoder_step.h"
#include "whole_blocks/decoder_worker.h"
#include "whole_blocks/valid_decoder.h"

using namespace dfq;

namespace {

int run(Step& step, int64_t threads) {
  return guarded([&] {
    step.plan_attention();
    work_together<DecoderWorker>(step, threads);
  });
}

}  // namespace

int dfq_decode(const dfq_decoder* model, const dfq_cache* caches, const void* hidden, const float* cos,
               const float* sin, int64_t batch, int64_t rows, int64_t position, void* out, int64_t threads) {
  if (batch < 1 || rows < 1 || batch * rows > DECODE_ROWS || position < 0 || !valid_decoder(*model)) return DFQ_BAD_ARGUMENT;
  Step step(*model, caches, hidden, cos, sin, batch, rows, position, out);
  return run(step, threads);
}

int dfq_decode_tree(const dfq_decoder* model, const dfq_cache* caches, const void* hidden, const float* cos,
                    const float* sin, int64_t rows, int64_t position, const int64_t* parents, void* out,
                    int64_t threads) {
  if (rows < 1 || rows > DECODE_ROWS || position < 0 || !parents || !valid_decoder(*model)) return DFQ_BAD_ARGUMENT;
  for (int64_t i = 0; i < rows; ++i) {
    if (parents[i] >= i || parents[i] < -1) return DFQ_BAD_ARGUMENT;
  }
  Step step(*model, caches, hidden, cos, sin, 1, rows, position, out);
  step.parents = parents;
  return run(step, threads);
}
