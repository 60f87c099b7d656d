// One call of dfq_decode: its arguments, what its threads share, and what each of them keeps to itself.
#pragma once
#include <algorithm>
#include <cstdint>

#include "attention/attention_kernels.h"
#include "common/arena.h"
#include "common/integers.h"
#include "common/kernels.h"
#include "common/thread_team.h"
#include "dfq_abi.h"
#include "tile16/tile16_kernels.h"

namespace dfq {
namespace {

inline TiledWeight weight_of(const dfq_linear& l) {
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
  const Kernels& use;
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
      : model(m), caches(c), hidden(h), cos(co), sin(si), batch(b), rows(r), position(p), out(o), use(kernels()),
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

inline void Step::plan_attention() {
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

inline int64_t Step::shared_bytes() const {
  const int64_t values = 2 * q_width() + 2 * kv_width() + model.hidden + 3 * model.mlp;
  const int64_t of_head = q_width() / model.head_dim * lines;  // query lines
  const int64_t attention = of_head * (model.head_dim * 4 + call.parts * call.k.width + 4 + call.parts * 4) +
                            parts * of_head * (model.head_dim + 2) * 4 + lines * 8;
  const int64_t side = 2 * lines * model.kv_heads * (call.k.bytes + 3) + lines * 8;
  return lines * values * size + attention + (parents ? side : 0) + 32 * 64;
}

inline void Step::lay_out(Cut cut) {
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

inline int64_t Step::private_bytes() const {
  const int64_t width = widest() + 8, block = 2 * std::max<int64_t>(model.r3_block, widest());
  return lines * (model.hidden + 2 * width) * size + lines * width * 4 + lines * width + lines * 8 + block * 4 +
         lines * (width / 8 + 1) * 4 + memory + 16 * 64;
}

inline Private Step::own(Cut cut) const {
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

}  // namespace
}  // namespace dfq
