// dfq_kv_append and dfq_kv_attention: argument checks, memory, partition over threads. The positions are cut into
// stretches whose length depends on the shapes alone, and their partial results are added in order: the number of
// threads changes nothing.
#include <algorithm>
#include <cstring>

#include "common/arena.h"
#include "common/kernels.h"
#include "common/limits.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "dfq_abi.h"
#include "hadamard/hadamard_argument.h"

namespace dfq {
namespace {

// query [batch][rows][heads][dim] -> float [batch][kv head][row][head of the group][dim]
void order_queries(const AttentionCall& call, const AttentionKernels& use, const void* query, float* to) {
  const int64_t count = call.group * call.k.dim;
  for (int64_t b = 0, from = 0; b < call.batch; ++b) {
    for (int64_t row = 0; row < call.rows; ++row) {
      for (int64_t head = 0; head < call.kv_heads; ++head, from += count) {
        use.load(query, call.type, from, count, to + ((b * call.kv_heads + head) * call.rows + row) * count);
      }
    }
  }
}

void run_attention(AttentionCall& call, const void* query, const HadamardArgument& hadamard, void* out,
                   int64_t threads) {
  const AttentionKernels& use = kernels().attention;
  const int64_t lines = call.rows * call.group, pairs = call.batch * call.kv_heads, dim = call.k.dim;
  const int64_t step = lines <= 32 ? 512 : 2048, splits = ceil_div(call.length, step);
  const int64_t parts = splits + (call.sinks ? 1 : 0), stride = call.v.dim + 2;
  call.k.width = use.width(call.k.dim, call.bits);
  call.v.width = use.width(call.v.dim, call.bits);
  const int64_t bytes = pairs * lines * (dim * 4 + call.parts * call.k.width + 4 + call.parts * 4) +
                        pairs * parts * lines * stride * 4 + hadamard.floats() * 4 + 8 * 64;
  Arena arena{static_cast<char*>(scratch(SCRATCH_CALLER, bytes))};
  float* const queries = arena.take<float>(pairs * lines * dim);
  int8_t* const digits = arena.take<int8_t>(pairs * lines * call.parts * call.k.width);
  float* const steps = arena.take<float>(pairs * lines);
  float* const sums = arena.take<float>(pairs * lines * call.parts);
  float* const partial = arena.take<float>(pairs * parts * lines * stride);
  float* const base_t = arena.take<float>(hadamard.floats());
  order_queries(call, use, query, queries);
  hadamard.transpose(base_t);
  hadamard.apply(queries, pairs * lines * dim, base_t, base_t + hadamard.order * hadamard.order);
  use.prepare(queries, pairs * lines, dim, call.bits, call.parts, call.scaling * LOG2_E, digits, steps, sums);
  call.query = queries, call.digits = digits, call.steps = steps, call.sums = sums;
  const int64_t memory = use.memory(call), work = call.length * pairs * (lines + 4) * dim;
  const auto part = [&](int64_t pair, int64_t index) { return partial + (pair * parts + index) * lines * stride; };
  // Neighbouring tasks are heads of the same positions: they lie together in memory.
  parallel_chunks(pairs * parts, work < 16 * SMALL ? 1 : threads, [&](int64_t i) {
    const int64_t index = i / pairs, pair = i % pairs, b = pair / call.kv_heads, head = pair % call.kv_heads;
    if (index == splits) return use.attend_sinks(call, b, head, part(pair, index));
    const int64_t begin = index * step, end = std::min(call.length, begin + step);
    use.attend(call, b, head, begin, end, scratch(SCRATCH_WORKER, memory), part(pair, index));
  });
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t b = pair / call.kv_heads, head = pair % call.kv_heads;
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t row = line / call.group, at = (b * call.rows + row) * call.kv_heads + head;
      use.combine(part(pair, 0) + line * stride, parts, lines * stride, call.v.dim, call.type, out,
                  (at * call.group + line % call.group) * call.v.dim);
    }
  }
}

}  // namespace
}  // namespace dfq

using namespace dfq;

int dfq_kv_attention(const dfq_kv_attention_args* args) {
  if (!valid_type(args->dtype) || !valid_bits(args->bits) || args->batch < 0 || args->rows < 0 ||
      args->rows > ATTENTION_ROWS)
    return DFQ_BAD_ARGUMENT;
  if (args->kv_heads < 1 || args->heads % args->kv_heads || args->length < args->rows || args->sinks < 0)
    return DFQ_BAD_ARGUMENT;
  if (args->k_dim < 1 || args->v_dim < 1 || args->k_dim > MAX_HEAD_DIM || args->v_dim > MAX_HEAD_DIM)
    return DFQ_BAD_ARGUMENT;
  const HadamardArgument hadamard = {args->base, args->order, args->block};
  if (!hadamard.valid(args->k_dim)) return DFQ_BAD_ARGUMENT;
  if (args->batch == 0 || args->rows == 0) return DFQ_OK;
  AttentionCall call = {};
  call.k = {args->k_packed, args->k_scale, args->k_zero, args->k_dim, ceil_div(args->k_dim * args->bits, 8), 0};
  call.v = {args->v_packed, args->v_scale, args->v_zero, args->v_dim, ceil_div(args->v_dim * args->bits, 8), 0};
  call.bits = int(args->bits), call.parts = args->dtype == DFQ_FLOAT32 ? 3 : 2;
  call.batch = args->batch, call.rows = args->rows, call.group = args->heads / args->kv_heads,
  call.kv_heads = args->kv_heads, call.length = args->length;
  call.first = args->first, call.tree = args->tree, call.trees = args->trees;
  call.k_sink = args->k_sink, call.v_sink = args->v_sink, call.sinks = args->sinks, call.sink_start = args->sink_start;
  call.type = int(args->dtype), call.scaling = float(args->scaling);
  return returning_status([&] { run_attention(call, args->query, hadamard, args->out, args->threads); });
}

int dfq_kv_append(const dfq_kv_append_args* args) {
  const HadamardArgument hadamard = {args->base, args->order, args->block};
  if (!valid_type(args->dtype) || !valid_bits(args->bits) || !hadamard.valid(args->k_dim) || args->position < 0)
    return DFQ_BAD_ARGUMENT;
  const int64_t k_bytes = ceil_div(args->k_dim * args->bits, 8), v_bytes = ceil_div(args->v_dim * args->bits, 8),
                size = args->dtype == DFQ_FLOAT32 ? 4 : 2;
  const RowKernels& run = kernels().rows;
  const AttentionKernels& use = kernels().attention;
  return returning_status([&] {
    float* const base_t = static_cast<float*>(scratch(SCRATCH_CALLER, (hadamard.floats() + 1) * 4));
    hadamard.transpose(base_t);
    parallel_rows(args->batch * args->rows, args->heads * (args->k_dim + args->v_dim), args->threads,
              [&](int64_t begin, int64_t end) {
                const int64_t floats = args->heads * args->k_dim + 2 * args->block;
                float* const keys = static_cast<float*>(scratch(SCRATCH_WORKER, floats * 4 + args->heads));
                uint8_t* const unused = reinterpret_cast<uint8_t*>(keys + floats);  // zero points of a symmetric cache
                for (int64_t i = begin; i < end; ++i) {                             // one position of one sequence
                  const int64_t from = i * args->heads,
                                to = ((args->position + i % args->rows) * args->batch + i / args->rows) * args->heads;
                  const void* k = static_cast<const char*>(args->key) + from * args->k_dim * size;
                  int64_t k_type = args->dtype;
                  if (args->base || args->shift) {
                    const int64_t count = args->heads * args->k_dim;
                    use.load(args->key, int(args->dtype), from * args->k_dim, count, keys);
                    hadamard.apply(keys, count, base_t, keys + count);
                    for (int64_t j = 0; args->shift && j < count; ++j) keys[j] -= args->shift[j];
                    k = keys, k_type = DFQ_FLOAT32;
                  }
                  run.kv_quantize_rows(k, int(k_type), args->k_dim, int(args->bits), args->symmetric != 0,
                                       float(args->clip), args->k_packed + to * k_bytes, args->k_scale + to,
                                       args->k_zero ? args->k_zero + to : unused, 0, args->heads);
                  run.kv_quantize_rows(static_cast<const char*>(args->value) + from * args->v_dim * size,
                                       int(args->dtype), args->v_dim, int(args->bits), args->symmetric != 0,
                                       float(args->clip), args->v_packed + to * v_bytes, args->v_scale + to,
                                       args->v_zero ? args->v_zero + to : unused, 0, args->heads);
                }
              });
  });
}
