// dfq_decode: all blocks of a model in one parallel region. Threads meet where one needs what another computed, five
// times a block; a thread owns tiles of the weights and whole heads of the cache. Residual, norms and the codes of
// activations are computed by every thread for itself: a few microseconds, less than handing them round.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <thread>

#include "dfq_decoder.h"
#include "common/kernel_tables.h"

namespace dfq {
namespace {

#include "common/parallel.h"
#include "common/thread_team.h"

TiledWeight weight_of(const dfq_linear& l) {
  const int64_t group = l.group > 0 && l.group < l.k ? l.group : l.k;
  return {l.tiles, l.scale, l.zero, l.sums, l.n, l.k, divided(l.n, TILED_ROWS) * TILED_ROWS,
          divided(l.k, TILED_DEPTH), group, divided(l.k, group)};
}

// What one thread keeps to itself.
struct Private {
  char *hidden, *normed, *rotated, *prepared;
  int8_t* codes;
  float *scale, *turn, *sums;
  int32_t* zero;
  char* attention;
};

struct Step {
  const dfq_decoder& model;
  const dfq_cache* caches;
  const void* hidden;
  const float *cos, *sin;
  int64_t batch, rows, position;
  void* out;
  const Family& use;
  int type;
  int64_t size;   // bytes of a value
  int64_t lines;  // batch * rows
  Meeting meeting;
  // shared
  char *q, *k, *v, *mixed, *branch, *gate, *up, *act;
  AttentionCall call;
  float *queries, *steps, *digit_sums, *partial;
  int8_t* digits;
  int64_t* first;
  const int64_t* parents = nullptr;  // of a tree
  int64_t* depth;
  uint8_t *side_codes, *side_zero;  // keys, then values of a tree: [rows][kv_heads]
  uint16_t* side_scale;
  int64_t stretch, stretches, parts, memory;

  Step(const dfq_decoder& m, const dfq_cache* c, const void* h, const float* co, const float* si, int64_t b, int64_t r,
       int64_t p, void* o)
      : model(m), caches(c), hidden(h), cos(co), sin(si), batch(b), rows(r), position(p), out(o), use(family()),
        type(int(m.dtype)), size(m.dtype == DFQ_FLOAT32 ? 4 : 2), lines(b * r) {}

  int64_t q_width() const { return model.heads * model.head_dim; }
  int64_t kv_width() const { return model.kv_heads * model.head_dim; }
  int64_t widest() const { return std::max({model.hidden, model.mlp, q_width()}); }
  int64_t group() const { return model.heads / model.kv_heads; }

  void plan_attention();
  int64_t shared_bytes() const;
  int64_t private_bytes() const;
  void lay_out(Cut cut);
  Private own(Cut cut) const;
};

void Step::plan_attention() {
  const int64_t dim = model.head_dim, length = position + rows, of_head = (parents ? 1 : rows) * group();
  call = {};
  const int64_t bytes = divided(dim * model.kv_bits, 8);
  call.k = call.v = {nullptr, nullptr, nullptr, dim, bytes, use.attention.width(dim, int(model.kv_bits))};
  call.bits = int(model.kv_bits), call.parts = type == DFQ_FLOAT32 ? 3 : 2;
  call.batch = batch, call.rows = rows, call.group = group(), call.kv_heads = model.kv_heads, call.length = length;
  call.trees = 1, call.sinks = std::min(model.sinks, length), call.type = type, call.scaling = float(model.scaling);
  stretch = of_head <= 32 ? 512 : 2048, stretches = divided(length, stretch);
  parts = stretches + (call.sinks ? 1 : 0);
  memory = use.attention.memory(call);
}

int64_t Step::shared_bytes() const {
  const int64_t values = 2 * q_width() + 2 * kv_width() + model.hidden + 3 * model.mlp;
  const int64_t of_head = q_width() / model.head_dim * lines;  // query lines
  const int64_t attention = of_head * (model.head_dim * 4 + call.parts * call.k.width + 4 + call.parts * 4) +
                            parts * of_head * (model.head_dim + 2) * 4 + lines * 8;
  const int64_t side = 2 * lines * model.kv_heads * (call.k.bytes + 3) + lines * 8;
  return lines * values * size + attention + (parents ? side : 0) + 32 * 64;
}

void Step::lay_out(Cut cut) {
  q = cut.take(lines * q_width() * size), k = cut.take(lines * kv_width() * size);
  v = cut.take(lines * kv_width() * size), mixed = cut.take(lines * q_width() * size);
  branch = cut.take(lines * model.hidden * size), gate = cut.take(lines * model.mlp * size);
  up = cut.take(lines * model.mlp * size), act = cut.take(lines * model.mlp * size);
  const int64_t of_head = model.heads * lines;
  queries = cut.take<float>(of_head * model.head_dim);
  digits = cut.take<int8_t>(of_head * call.parts * call.k.width);
  steps = cut.take<float>(of_head), digit_sums = cut.take<float>(of_head * call.parts);
  partial = cut.take<float>(parts * of_head * (model.head_dim + 2));
  first = cut.take<int64_t>(lines);
  if (parents) {
    const int64_t stored = 2 * lines * model.kv_heads;
    depth = cut.take<int64_t>(lines);
    side_codes = cut.take<uint8_t>(stored * call.k.bytes), side_zero = cut.take<uint8_t>(stored);
    side_scale = cut.take<uint16_t>(stored);
    for (int64_t i = 0; i < lines; ++i) depth[i] = parents[i] < 0 ? 0 : depth[parents[i]] + 1;
  }
  call.query = queries, call.digits = digits, call.steps = steps, call.sums = digit_sums;
  for (int64_t i = 0; i < lines; ++i) {
    const int64_t place = parents ? depth[i] : i % rows;
    first[i] = model.window ? std::max<int64_t>(0, position + place + 1 - model.window) : 0;
  }
  call.first = model.window ? first : nullptr;
}

int64_t Step::private_bytes() const {
  const int64_t width = widest() + 8, block = 2 * std::max<int64_t>(model.r3_block, widest());
  return lines * (model.hidden + 2 * width) * size + lines * width * 4 + lines * width + lines * 8 + block * 4 +
         lines * (width / 8 + 1) * 4 + memory + 16 * 64;
}

Private Step::own(Cut cut) const {
  const int64_t width = widest() + 8;
  Private p;
  p.hidden = cut.take(lines * model.hidden * size), p.normed = cut.take(lines * width * size);
  p.rotated = cut.take(lines * width * size);
  p.prepared = cut.take(lines * width * 4);  // the most that a value takes: two bfloat16 parts
  p.codes = cut.take<int8_t>(lines * width);
  p.scale = cut.take<float>(lines), p.zero = cut.take<int32_t>(lines);
  p.turn = cut.take<float>(2 * std::max<int64_t>(model.r3_block, widest()));
  p.sums = cut.take<float>(lines * (width / 8 + 1));
  p.attention = cut.take(memory);
  return p;
}

#include "whole_blocks/decoder_worker.h"

bool valid(const dfq_linear& l, int64_t n, int64_t k) {
  return l.n == n && l.k == k && (l.group <= 0 || l.group >= k || l.group % TILED_DEPTH == 0) && l.bits >= 2 &&
         (!l.base_t || (l.order > 0 && l.block > 0 && k % l.block == 0)) && (l.bits == 16 || l.symmetric || l.sums);
}

}  // namespace

bool valid_decoder(const dfq_decoder& m) {
  const int64_t q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
  if (!valid_type(m.dtype) || !valid_bits(m.kv_bits) || m.kv_heads < 1 || m.heads % m.kv_heads) return false;
  if (m.head_dim < 2 || m.head_dim > 512 || m.head_dim % 2) return false;
  for (int64_t i = 0; i < m.layers; ++i) {
    const dfq_block& b = m.blocks[i];
    if (!valid(b.q, q, m.hidden) || !valid(b.k, kv, m.hidden) || !valid(b.v, kv, m.hidden)) return false;
    if (!valid(b.o, m.hidden, q) || !valid(b.gate, m.mlp, m.hidden) || !valid(b.up, m.mlp, m.hidden)) return false;
    if (!valid(b.down, m.hidden, m.mlp)) return false;
  }
  return true;
}

}  // namespace dfq

using namespace dfq;

int dfq_decoder_words(int64_t* linear, int64_t* block, int64_t* cache, int64_t* decoder, int64_t) {
  *linear = sizeof(dfq_linear) / 8, *block = sizeof(dfq_block) / 8;
  *cache = sizeof(dfq_cache) / 8, *decoder = sizeof(dfq_decoder) / 8;
  return DFQ_OK;
}

namespace {

int run(Step& step, int64_t threads) {
  return guarded([&] {
    step.plan_attention();
    work_together<Worker>(step, threads);
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
