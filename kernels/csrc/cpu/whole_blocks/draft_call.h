// One call of dfq_draft_pass: its arguments, what its threads share, and what each of them keeps to itself.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/arena.h"
#include "common/integers.h"
#include "common/kernels.h"
#include "common/parallel_region.h"
#include "dfq_abi.h"
#include "tile16/tile16_kernels.h"

namespace dfq {
namespace {

constexpr int64_t LANES = 16;  // rows of x are padded to it

inline int64_t padded(int64_t count) { return ceil_div(count, LANES) * LANES; }

inline Tile16Weight tiles_of(const dfq_draft_linear& l) {
  const int64_t group = l.group > 0 && l.group < l.k ? l.group : l.k;
  return {static_cast<const uint8_t*>(l.data),
          l.scale,
          l.zero,
          nullptr,
          l.n,
          l.k,
          ceil_div(l.n, TILE16_ROWS) * TILE16_ROWS,
          ceil_div(l.k, TILE16_DEPTH),
          group,
          ceil_div(l.k, group)};
}

template <typename Predicate>
bool any_block(const dfq_draft& model, Predicate predicate) {
  return std::any_of(model.blocks, model.blocks + model.layers, predicate);
}

// What one thread keeps to itself, but for `bytes`, of float32 if not said otherwise.
struct DraftThreadMemory {
  float *hidden, *normed, *second, *pair, *fresh, *normed_fresh, *input, *query, *mixed, *scores, *sums;
  char *narrow, *prepared;
};

struct DraftCall : dfq_draft_pass_args {
  const dfq_draft& model;
  const Kernels& tables;
  int type;
  Barrier barrier;
  float *q, *k, *v, *gathered, *branch, *gate, *up;  // shared

  explicit DraftCall(const dfq_draft_pass_args& args)
      : dfq_draft_pass_args(args), model(*args.draft), tables(kernels()), type(int(model.dtype)) {}

  int64_t q_width() const { return model.heads * model.head_dim; }
  int64_t pair_width() const {  // of [norm(x), norm(h)]; 0 in a draft that has no such block
    return any_block(model, [](const auto& b) { return b.side_norm != nullptr; }) ? 2 * model.hidden : 0;
  }
  int64_t kv_width() const { return model.kv_heads * model.head_dim; }
  int64_t max_width() const { return padded(std::max({pair_width(), model.hidden, model.mlp, q_width()})); }
  int64_t max_rows() const { return std::max(rows, news); }
  int64_t visible() const {  // most buffer rows that a slot sees
    return std::max(at + rows, 1 + features + drafted);
  }
  int64_t prepared_bytes() const {
    int64_t bytes = 0;
    for (int64_t i = 0; i < model.layers; ++i) {
      const dfq_draft_block& b = model.blocks[i];
      for (const dfq_draft_linear* l : {&b.q, &b.k, &b.v, &b.o, &b.gate, &b.up, &b.down}) {
        if (l->data && l->kind == DFQ_TILES)
          bytes = std::max(bytes, tables.tile16.float_bytes(max_rows(), tiles_of(*l), type));
      }
    }
    return bytes;
  }
  int64_t shared_bytes() const {
    return max_rows() * (2 * q_width() + 2 * kv_width() + model.hidden + 2 * model.mlp) * 4 + 8 * 64;
  }
  int64_t private_bytes() const {
    const int64_t width = padded(model.hidden), dim = padded(model.head_dim);
    const int64_t pair = rows * padded(pair_width());
    return (rows * (3 * width + max_width()) + pair + 2 * news * width + 2 * dim + visible() + LANES) * 4 +
           max_rows() * (max_width() * 4 + (max_width() / TILE16_DEPTH + 1) * 4) + prepared_bytes() + 14 * 64;
  }
  void lay_out_shared(Arena arena) {
    q = arena.take<float>(rows * q_width()), gathered = arena.take<float>(rows * q_width());
    k = arena.take<float>(max_rows() * kv_width()), v = arena.take<float>(max_rows() * kv_width());
    branch = arena.take<float>(rows * model.hidden);
    gate = arena.take<float>(rows * model.mlp), up = arena.take<float>(rows * model.mlp);
  }
  DraftThreadMemory lay_out_private(Arena arena) const {
    const int64_t width = padded(model.hidden), dim = padded(model.head_dim);
    DraftThreadMemory p;
    p.hidden = arena.take<float>(rows * width), p.normed = arena.take<float>(rows * width);
    p.second = arena.take<float>(rows * width), p.pair = arena.take<float>(rows * padded(pair_width()));
    p.fresh = arena.take<float>(news * width), p.normed_fresh = arena.take<float>(news * width);
    p.input = arena.take<float>(rows * max_width());
    p.query = arena.take<float>(dim), p.mixed = arena.take<float>(dim);
    p.scores = arena.take<float>(visible() + LANES);
    p.sums = arena.take<float>(max_rows() * (max_width() / TILE16_DEPTH + 1));
    p.narrow = arena.take(max_rows() * max_width() * 4), p.prepared = arena.take(prepared_bytes());
    return p;
  }
};

}  // namespace
}  // namespace dfq
