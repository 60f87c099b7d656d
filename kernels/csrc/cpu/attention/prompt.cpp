// dfq_prompt_attention: argument checks, memory, partition over threads. A chunk of work is a block of query rows of one
// kv head, those with the most positions first; a row's arithmetic depends on its own position alone.
#include <algorithm>

#include "common/arena.h"
#include "common/kernels.h"
#include "common/limits.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "dfq_abi.h"

namespace dfq {
namespace {

constexpr int64_t PANEL_BUDGET = 16 << 20;  // bytes of panels at a time, where one kv head needs no more

void attend_pairs(PromptCall& call, const PromptKernels& use, int64_t pairs, int64_t threads) {
  const int64_t tiles = call.padded / PROMPT_TILE, stretch = std::max<int64_t>(1, ceil_div(tiles, 4 * threads));
  const int64_t stretches = ceil_div(tiles, stretch);
  parallel_chunks(pairs * stretches, threads, [&](int64_t i) {
    const int64_t begin = i / pairs * stretch;
    use.fill(call, i % pairs, begin * PROMPT_TILE, std::min(tiles, begin + stretch) * PROMPT_TILE);
  });
  const int64_t most = std::max<int64_t>(1, PROMPT_LINES / call.group);  // rows of a block
  const int64_t blocks = ceil_div(call.rows, most);
  parallel_chunks(pairs * blocks, threads, [&](int64_t i) {
    const int64_t block = blocks - 1 - i / pairs, begin = block * most, end = std::min(call.rows, begin + most);
    use.attend(call, i % pairs, begin, end, scratch(SCRATCH_WORKER, use.memory(call, end - begin)));
  });
}

void attend_prompt(PromptCall& call, int64_t threads) {
  const PromptKernels& use = kernels().prompt;
  call.padded = ceil_div(call.length, PROMPT_TILE) * PROMPT_TILE;
  const int64_t keys = use.key_bytes(call), values = use.value_bytes(call), scales = 2 * call.padded * 4;
  const int64_t pairs = call.batch * call.kv_heads;
  const int64_t together = std::clamp<int64_t>(PANEL_BUDGET / (keys + values + scales), 1, pairs);
  Arena arena{static_cast<char*>(scratch(SCRATCH_CALLER, together * (keys + values + scales) + 4 * 64))};
  call.keys = arena.take(together * keys), call.values = arena.take(together * values);
  call.key_scale = arena.take<float>(together * call.padded);
  call.value_scale = arena.take<float>(together * call.padded);
  for (call.first_pair = 0; call.first_pair < pairs; call.first_pair += together) {
    attend_pairs(call, use, std::min(together, pairs - call.first_pair), threads);
  }
}

}  // namespace
}  // namespace dfq

using namespace dfq;

int dfq_prompt_attention(const dfq_prompt_attention_args* args) {
  if (!valid_type(args->dtype) || !valid_bits(args->bits) || args->batch < 0 || args->rows < 0 || args->window < 0)
    return DFQ_BAD_ARGUMENT;
  if (args->kv_heads < 1 || args->heads % args->kv_heads || args->length < args->rows || args->sinks < 0)
    return DFQ_BAD_ARGUMENT;
  if (args->k_dim < 1 || args->v_dim < 1 || args->k_dim > MAX_HEAD_DIM || args->v_dim > MAX_HEAD_DIM)
    return DFQ_BAD_ARGUMENT;
  if (args->sinks && (!args->k_sink || !args->v_sink)) return DFQ_BAD_ARGUMENT;
  if (args->batch == 0 || args->rows == 0 || args->heads == 0) return DFQ_OK;
  PromptCall call = {};
  call.k = {args->k_packed, args->k_scale, args->k_zero, args->k_dim, ceil_div(args->k_dim * args->bits, 8), 0};
  call.v = {args->v_packed, args->v_scale, args->v_zero, args->v_dim, ceil_div(args->v_dim * args->bits, 8), 0};
  call.bits = int(args->bits), call.batch = args->batch, call.rows = args->rows;
  call.group = args->heads / args->kv_heads, call.kv_heads = args->kv_heads, call.length = args->length;
  call.window = args->window, call.k_sink = args->k_sink, call.v_sink = args->v_sink, call.sinks = args->sinks;
  call.type = int(args->dtype), call.scaling = float(args->scaling) * LOG2_E;
  call.query = args->query, call.out = args->out;
  return returning_status([&] { attend_prompt(call, std::max<int64_t>(1, args->threads)); });
}
