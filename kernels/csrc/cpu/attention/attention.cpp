// dfq_kv_append and dfq_kv_attention: argument checks, memory, partition over threads. The positions are cut into
// stretches whose length depends on the shapes alone, and their partial results are added in order: the number of
// threads changes nothing.
#include <algorithm>
#include <cstring>

#include "common/arena.h"
#include "common/kernels.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "dfq_abi.h"
#include "hadamard/transform.h"

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

void run_attention(AttentionCall& call, const void* query, const Turn& turn, void* out, int64_t threads) {
  const AttentionKernels& use = kernels().attention;
  const int64_t lines = call.rows * call.group, pairs = call.batch * call.kv_heads, dim = call.k.dim;
  const int64_t step = lines <= 32 ? 512 : 2048, stretches = divided(call.length, step);
  const int64_t parts = stretches + (call.sinks ? 1 : 0), stride = call.v.dim + 2;
  call.k.width = use.width(call.k.dim, call.bits);
  call.v.width = use.width(call.v.dim, call.bits);
  const int64_t bytes = pairs * lines * (dim * 4 + call.parts * call.k.width + 4 + call.parts * 4) +
                        pairs * parts * lines * stride * 4 + turn.floats() * 4 + 8 * 64;
  Cut cut{static_cast<char*>(scratch(SCRATCH_CALLER, bytes))};
  float* const queries = cut.take<float>(pairs * lines * dim);
  int8_t* const digits = cut.take<int8_t>(pairs * lines * call.parts * call.k.width);
  float* const steps = cut.take<float>(pairs * lines);
  float* const sums = cut.take<float>(pairs * lines * call.parts);
  float* const partial = cut.take<float>(pairs * parts * lines * stride);
  float* const base_t = cut.take<float>(turn.floats());
  order_queries(call, use, query, queries);
  turn.transpose(base_t);
  turn.apply(queries, pairs * lines * dim, base_t, base_t + turn.order * turn.order);
  use.prepare(queries, pairs * lines, dim, call.bits, call.parts, call.scaling * 1.44269504f, digits, steps, sums);
  call.query = queries, call.digits = digits, call.steps = steps, call.sums = sums;
  const int64_t memory = use.memory(call), work = call.length * pairs * (lines + 4) * dim;
  const auto part = [&](int64_t pair, int64_t index) { return partial + (pair * parts + index) * lines * stride; };
  // Neighbouring tasks are heads of the same positions: they lie together in memory.
  each(pairs * parts, work < 16 * SMALL ? 1 : threads, [&](int64_t i) {
    const int64_t index = i / pairs, pair = i % pairs, b = pair / call.kv_heads, head = pair % call.kv_heads;
    if (index == stretches) return use.attend_sinks(call, b, head, part(pair, index));
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

int dfq_kv_attention(const void* query, int64_t type, int64_t batch, int64_t rows, int64_t heads, int64_t kv_heads,
                     int64_t k_dim, int64_t v_dim, const uint8_t* k_packed, const uint16_t* k_scale,
                     const uint8_t* k_zero, const uint8_t* v_packed, const uint16_t* v_scale, const uint8_t* v_zero,
                     int64_t length, int64_t bits, float scaling, const float* base, int64_t order, int64_t block,
                     const int64_t* first, const uint8_t* tree, int64_t trees, const void* k_sink, const void* v_sink,
                     int64_t sinks, const int64_t* sink_start, void* out, int64_t threads) {
  if (!valid_type(type) || !valid_bits(bits) || batch < 0 || rows < 0 || rows > ATTENTION_ROWS) return DFQ_BAD_ARGUMENT;
  if (kv_heads < 1 || heads % kv_heads || length < rows || sinks < 0) return DFQ_BAD_ARGUMENT;
  if (k_dim < 1 || v_dim < 1 || k_dim > ATTENTION_DIM || v_dim > ATTENTION_DIM) return DFQ_BAD_ARGUMENT;
  const Turn turn = {base, order, block};
  if (!turn.valid(k_dim)) return DFQ_BAD_ARGUMENT;
  if (batch == 0 || rows == 0) return DFQ_OK;
  AttentionCall call = {};
  call.k = {k_packed, k_scale, k_zero, k_dim, divided(k_dim * bits, 8), 0};
  call.v = {v_packed, v_scale, v_zero, v_dim, divided(v_dim * bits, 8), 0};
  call.bits = int(bits), call.parts = type == DFQ_FLOAT32 ? 3 : 2;
  call.batch = batch, call.rows = rows, call.group = heads / kv_heads, call.kv_heads = kv_heads, call.length = length;
  call.first = first, call.tree = tree, call.trees = trees;
  call.k_sink = k_sink, call.v_sink = v_sink, call.sinks = sinks, call.sink_start = sink_start;
  call.type = int(type), call.scaling = scaling;
  return guarded([&] { run_attention(call, query, turn, out, threads); });
}

int dfq_kv_append(const void* key, const void* value, int64_t type, int64_t batch, int64_t rows, int64_t heads,
                  int64_t k_dim, int64_t v_dim, uint8_t* k_packed, uint16_t* k_scale, uint8_t* k_zero,
                  uint8_t* v_packed, uint16_t* v_scale, uint8_t* v_zero, int64_t position, int64_t bits,
                  int64_t symmetric, float clip, const float* base, int64_t order, int64_t block, int64_t threads) {
  const Turn turn = {base, order, block};
  if (!valid_type(type) || !valid_bits(bits) || !turn.valid(k_dim) || position < 0) return DFQ_BAD_ARGUMENT;
  const int64_t k_bytes = divided(k_dim * bits, 8), v_bytes = divided(v_dim * bits, 8), size = type == DFQ_FLOAT32 ? 4 : 2;
  const RowKernels& run = kernels().rows;
  const AttentionKernels& use = kernels().attention;
  return guarded([&] {
    float* const base_t = static_cast<float*>(scratch(SCRATCH_CALLER, (turn.floats() + 1) * 4));
    turn.transpose(base_t);
    over_rows(batch * rows, heads * (k_dim + v_dim), threads, [&](int64_t begin, int64_t end) {
      const int64_t floats = heads * k_dim + 2 * block;
      float* const keys = static_cast<float*>(scratch(SCRATCH_WORKER, floats * 4 + heads));
      uint8_t* const unused = reinterpret_cast<uint8_t*>(keys + floats);  // zero points of a symmetric cache
      for (int64_t i = begin; i < end; ++i) {  // one position of one sequence
        const int64_t from = i * heads, to = ((position + i % rows) * batch + i / rows) * heads;
        const void* k = static_cast<const char*>(key) + from * k_dim * size;
        int64_t k_type = type;
        if (base) {
          use.load(key, int(type), from * k_dim, heads * k_dim, keys);
          turn.apply(keys, heads * k_dim, base_t, keys + heads * k_dim);
          k = keys, k_type = DFQ_FLOAT32;
        }
        run.kv_quantize_rows(k, int(k_type), k_dim, int(bits), symmetric != 0, clip, k_packed + to * k_bytes,
                             k_scale + to, k_zero ? k_zero + to : unused, 0, heads);
        run.kv_quantize_rows(static_cast<const char*>(value) + from * v_dim * size, int(type), v_dim, int(bits),
                             symmetric != 0, clip, v_packed + to * v_bytes, v_scale + to,
                             v_zero ? v_zero + to : unused, 0, heads);
      }
    });
  });
}
