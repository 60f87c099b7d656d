// One call of dfq_draft_pass: its arguments, what its threads share, and what each of them keeps to itself.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/arena.h"
#include "common/integers.h"
#include "common/kernels.h"
#include "common/thread_team.h"
#include "dfq_abi.h"
#include "tile16/tile16_kernels.h"

namespace dfq {
namespace {

constexpr int64_t LANE = 16;  // rows of x are padded to it

inline int64_t padded(int64_t count) { return divided(count, LANE) * LANE; }

inline TiledWeight tiles_of(const dfq_draft_linear& l) {
  const int64_t group = l.group > 0 && l.group < l.k ? l.group : l.k;
  return {static_cast<const uint8_t*>(l.data), l.scale, l.zero, nullptr, l.n, l.k, divided(l.n, TILED_ROWS) * TILED_ROWS,
          divided(l.k, TILED_DEPTH), group, divided(l.k, group)};
}

// What one thread keeps to itself, but for `bytes`, of float32 if not said otherwise.
struct Private {
  float *hidden, *normed, *fresh, *input, *query, *mixed, *scores, *sums;
  char *narrow, *prepared;
};

struct Slots {  // the arguments of a call
  const dfq_draft& model;
  const dfq_draft_buffer* buffers;
  const void *x, *fresh;
  int64_t rows, news;
  const float *cos, *sin;
  const int64_t* positions;
  int64_t at, verified;
  const uint8_t* tree;
  int64_t cross_at, features, drafted;
  const int64_t* places;
  const uint8_t* cross_tree;
  void* out;
};

struct Pass : Slots {
  const Kernels& use;
  int type;
  Meeting meeting;
  float *q, *k, *v, *gathered, *branch, *gate, *up;  // shared

  explicit Pass(const Slots& slots) : Slots(slots), use(kernels()), type(int(slots.model.dtype)) {}

  int64_t q_width() const { return model.heads * model.head_dim; }
  int64_t kv_width() const { return model.kv_heads * model.head_dim; }
  int64_t widest() const { return padded(std::max({model.hidden, model.mlp, q_width()})); }
  int64_t most() const { return std::max(rows, news); }
  int64_t visible() const {  // most buffer rows that a slot sees
    return std::max(at + rows, 1 + features + drafted);
  }
  int64_t prepared_bytes() const {
    int64_t found = 0;
    for (int64_t i = 0; i < model.layers; ++i) {
      const dfq_draft_block& b = model.blocks[i];
      for (const dfq_draft_linear* l : {&b.q, &b.k, &b.v, &b.o, &b.gate, &b.up, &b.down}) {
        if (l->data && l->kind == DFQ_TILES) found = std::max(found, use.tile16.float_bytes(most(), tiles_of(*l), type));
      }
    }
    return found;
  }
  int64_t shared_bytes() const {
    return most() * (2 * q_width() + 2 * kv_width() + model.hidden + 2 * model.mlp) * 4 + 8 * 64;
  }
  int64_t private_bytes() const {
    const int64_t width = padded(model.hidden), dim = padded(model.head_dim);
    return (rows * (2 * width + widest()) + news * width + 2 * dim + visible() + LANE) * 4 +
           most() * (widest() * 4 + (widest() / TILED_DEPTH + 1) * 4) + prepared_bytes() + 11 * 64;
  }
  void lay_out(Cut cut) {
    q = cut.take<float>(rows * q_width()), gathered = cut.take<float>(rows * q_width());
    k = cut.take<float>(most() * kv_width()), v = cut.take<float>(most() * kv_width());
    branch = cut.take<float>(rows * model.hidden);
    gate = cut.take<float>(rows * model.mlp), up = cut.take<float>(rows * model.mlp);
  }
  Private own(Cut cut) const {
    const int64_t width = padded(model.hidden), dim = padded(model.head_dim);
    Private p;
    p.hidden = cut.take<float>(rows * width), p.normed = cut.take<float>(rows * width);
    p.fresh = cut.take<float>(news * width), p.input = cut.take<float>(rows * widest());
    p.query = cut.take<float>(dim), p.mixed = cut.take<float>(dim);
    p.scores = cut.take<float>(visible() + LANE);
    p.sums = cut.take<float>(most() * (widest() / TILED_DEPTH + 1));
    p.narrow = cut.take(most() * widest() * 4), p.prepared = cut.take(prepared_bytes());
    return p;
  }
};

}  // namespace
}  // namespace dfq
