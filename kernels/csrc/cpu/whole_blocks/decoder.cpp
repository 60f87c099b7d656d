// dfq_decode: all blocks of a model in one parallel region. Threads wait where one needs what another computed, five
// times a block; a thread owns tiles of the weights and whole heads of the cache. Residual, norms and the codes of
// activations are computed by every thread for itself: a few microseconds, less than handing them round.
#include "common/parallel.h"
#include "common/parallel_region.h"
#include "dfq_abi.h"
#include "tile16/tile16_kernels.h"
#include "whole_blocks/decoder_call.h"
#include "whole_blocks/decoder_worker.h"
#include "whole_blocks/valid_decoder.h"

using namespace dfq;

namespace {

int run(DecoderCall& call_, int64_t threads) {
  return returning_status([&] {
    call_.plan_attention();
    run_workers<DecoderWorker>(call_, threads);
  });
}

}  // namespace

int dfq_decode(const dfq_decode_args* args) {
  if (args->batch < 1 || args->rows < 1 || args->batch * args->rows > DECODE_ROWS || args->position < 0 ||
      !valid_decoder(*args->model) || !valid_caches(*args->model, args->caches, args->position))
    return DFQ_BAD_ARGUMENT;
  DecoderCall call_(*args);
  return run(call_, args->threads);
}

int dfq_decode_tree(const dfq_decode_tree_args* args) {
  if (args->rows < 1 || args->rows > DECODE_ROWS || args->position < 0 || !args->parents ||
      !valid_decoder(*args->model) || args->position < args->model->sinks)
    return DFQ_BAD_ARGUMENT;
  for (int64_t i = 0; i < args->rows; ++i) {
    if (args->parents[i] >= i || args->parents[i] < -1) return DFQ_BAD_ARGUMENT;
  }
  dfq_decode_args call = {};
  call.model = args->model, call.caches = args->caches, call.hidden = args->hidden;
  call.cos = args->cos, call.sin = args->sin;
  call.batch = 1, call.rows = args->rows, call.position = args->position;
  call.out = args->out, call.states = args->states, call.threads = args->threads;
  DecoderCall call_(call);
  call_.parents = args->parents;
  return run(call_, args->threads);
}

int dfq_decode_batch(const dfq_decode_batch_args* args) {
  if (args->lines < 1 || args->lines > DECODE_ROWS || !args->positions || !valid_decoder(*args->model))
    return DFQ_BAD_ARGUMENT;
  for (int64_t i = 0; i < args->lines; ++i) {
    if (args->positions[i] < args->model->sinks) return DFQ_BAD_ARGUMENT;
  }
  dfq_decode_args call = {};
  call.model = args->model, call.caches = args->caches, call.hidden = args->hidden;
  call.cos = args->cos, call.sin = args->sin;
  call.batch = 1, call.rows = args->lines, call.position = 0;
  call.out = args->out, call.threads = args->threads;
  DecoderCall call_(call);
  call_.positions = args->positions;
  return run(call_, args->threads);
}
