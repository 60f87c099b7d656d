// dfq_draft_pass: all blocks of a draft in one parallel region, as decoder.cpp does for a target. Threads meet where one
// needs what another computed, six times a block; residual and norms are computed by every thread for itself.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <thread>

#include "dfq_draft.h"
#include "common/kernel_tables.h"

namespace dfq {
namespace {

#include "common/parallel.h"
#include "common/thread_team.h"

constexpr int64_t LANE = 16;  // rows of x are padded to it

int64_t padded(int64_t count) { return divided(count, LANE) * LANE; }

TiledWeight tiles_of(const dfq_draft_linear& l) {
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
  const Family& use;
  int type;
  Meeting meeting;
  float *q, *k, *v, *gathered, *branch, *gate, *up;  // shared

  explicit Pass(const Slots& slots) : Slots(slots), use(family()), type(int(slots.model.dtype)) {}

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
        if (l->data && l->kind == DFQ_TILES) found = std::max(found, use.tiled.float_bytes(most(), tiles_of(*l), type));
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

#include "whole_blocks/draft_worker.h"

bool valid(const dfq_draft_linear& l, int64_t n, int64_t k) {
  if (!l.data || l.n != n || l.k != k) return false;
  if (l.kind == DFQ_TILES) return l.scale && (l.group <= 0 || l.group >= k || l.group % TILED_DEPTH == 0);
  return l.kind == DFQ_FLOAT32 || l.kind == DFQ_BFLOAT16 || (l.kind == DFQ_CODES8 && l.scale);
}

bool valid(const Slots& s) {
  const dfq_draft& m = s.model;
  const int64_t q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
  if (m.dtype != DFQ_FLOAT32 && m.dtype != DFQ_BFLOAT16) return false;
  if (m.layers < 1 || m.kv_heads < 1 || m.heads % m.kv_heads) return false;
  if (m.head_dim < 2 || m.head_dim > 512 || m.head_dim % 2) return false;
  if (s.rows < 1 || s.rows > DECODE_ROWS || s.news < 0 || s.news > DECODE_ROWS) return false;
  if (s.verified < 0 || s.verified > s.at + s.rows || s.at < 0 || s.features < 0 || s.drafted < 0) return false;
  for (int64_t i = 0; i < m.layers; ++i) {
    const dfq_draft_block& b = m.blocks[i];
    if (!valid(b.gate, m.mlp, m.hidden) || !valid(b.up, m.mlp, m.hidden) || !valid(b.down, m.hidden, m.mlp)) return false;
    if (!b.q.data) continue;
    if (!valid(b.q, q, m.hidden) || !valid(b.k, kv, m.hidden) || !valid(b.v, kv, m.hidden)) return false;
    if (!valid(b.o, m.hidden, q)) return false;
    const int64_t end = b.cross ? std::max(s.cross_at + s.news, 1 + s.features + s.drafted) : s.at + s.rows;
    if (end > s.buffers[i].capacity || (b.cross && s.cross_at < 1)) return false;
  }
  return true;
}

}  // namespace
}  // namespace dfq

using namespace dfq;

int dfq_draft_words(int64_t* linear, int64_t* block, int64_t* draft, int64_t* buffer, int64_t) {
  *linear = sizeof(dfq_draft_linear) / 8, *block = sizeof(dfq_draft_block) / 8;
  *draft = sizeof(dfq_draft) / 8, *buffer = sizeof(dfq_draft_buffer) / 8;
  return DFQ_OK;
}

int dfq_dense(const void* x, int64_t dtype, int64_t m, int64_t n, int64_t k, const void* weight, void* out,
              int64_t threads) {
  if ((dtype != DFQ_FLOAT32 && dtype != DFQ_BFLOAT16) || m < 1 || n < 1 || k < 1) return DFQ_BAD_ARGUMENT;
  return guarded([&] {
    const DraftKernels& use = family().draft;
    const bool narrow = dtype == DFQ_BFLOAT16 && use.dense_narrow;
    const int64_t stride = divided(k, 32) * 32, size = narrow ? 2 : 4, bytes = dtype == DFQ_FLOAT32 ? 4 : 2;
    char* const rows = static_cast<char*>(scratch(SCRATCH_CALLER, m * stride * size));
    std::memset(rows, 0, size_t(m * stride * size));
    for (int64_t i = 0; i < m; ++i) {
      char* const to = rows + i * stride * size;
      if (narrow) std::memcpy(to, static_cast<const char*>(x) + i * k * 2, size_t(k) * 2);
      else use.load(x, int(dtype), i * k, k, reinterpret_cast<float*>(to));
    }
    over_rows(divided(n, DENSE_ROWS), DENSE_ROWS * k, threads, [&](int64_t begin, int64_t end) {
      float sums[DECODE_ROWS * DENSE_ROWS];
      for (int64_t from = begin * DENSE_ROWS; from < std::min(n, end * DENSE_ROWS); from += DENSE_ROWS) {
        const int64_t count = std::min(DENSE_ROWS, n - from);
        const DenseWeight w = {static_cast<const char*>(weight) + from * k * bytes, nullptr, int(dtype), k};
        for (int64_t i = 0; i < m; i += DECODE_ROWS) {
          const int64_t block = std::min(DECODE_ROWS, m - i);
          const char* const at = rows + i * stride * size;
          if (narrow) use.dense_narrow(reinterpret_cast<const uint16_t*>(at), block, stride, w, 0, count, sums, DENSE_ROWS);
          else use.dense(reinterpret_cast<const float*>(at), block, stride, w, 0, count, sums, DENSE_ROWS);
          for (int64_t row = 0; row < block; ++row) {
            use.store(sums + row * DENSE_ROWS, count, int(dtype), out, (i + row) * n + from);
          }
        }
      }
    });
  });
}

int dfq_draft_pass(const dfq_draft* draft, const dfq_draft_buffer* buffers, const void* x, int64_t rows,
                   const void* fresh, int64_t news, const float* cos, const float* sin, const int64_t* positions,
                   int64_t at, int64_t verified, const uint8_t* tree, int64_t cross_at, int64_t features,
                   int64_t drafted, const int64_t* places, const uint8_t* cross_tree, void* out, int64_t threads) {
  const Slots slots = {*draft, buffers, x,       fresh,    rows,     news,    cos,    sin,        positions,
                       at,     verified, tree,   cross_at, features, drafted, places, cross_tree, out};
  if (!valid(slots)) return DFQ_BAD_ARGUMENT;
  return guarded([&] {
    Pass pass(slots);
    work_together<Worker>(pass, threads);
  });
}
