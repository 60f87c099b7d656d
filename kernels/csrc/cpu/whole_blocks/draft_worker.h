// One thread's way through the blocks of a draft.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/integers.h"
#include "common/limits.h"
#include "common/parallel_region.h"
#include "dense/dense_kernels.h"
#include "dfq_abi.h"
#include "tile16/tile16_kernels.h"
#include "whole_blocks/draft_kernels.h"
#include "whole_blocks/draft_call.h"

namespace dfq {
namespace {

class DraftWorker {
 public:
  DraftWorker(DraftCall& call, const DraftThreadMemory& own, int64_t index, int64_t size)
      : s_(call), m_(call.model), p_(own), width_(padded(call.model.hidden)), index_(index), size_(size) {}

  void run() {
    const bool pairs = s_.pair_width() != 0;
    widen(pairs ? s_.stream : s_.x, s_.rows, p_.hidden);
    if (s_.stream) widen(pairs ? s_.x : s_.stream, s_.rows, p_.second);
    widen(s_.fresh, s_.news, p_.fresh);
    for (int64_t layer = 0; layer < m_.layers; ++layer) block(m_.blocks[layer], s_.buffers[layer]);
    if (m_.final_norm) norm_stream(m_.final_norm);
    if (index_) return;
    const float* const last = m_.final_norm ? p_.normed : p_.hidden;
    for (int64_t row = 0; row < s_.rows; ++row) {
      s_.tables.dense.store(last + row * width_, m_.hidden, s_.type, s_.out, row * m_.hidden);
    }
  }

 private:
  void block(const dfq_draft_block& b, const dfq_draft_buffer& buffer) {
    if (b.joins) {
      for (int64_t i = 0; i < s_.rows * width_; ++i) p_.hidden[i] += p_.second[i];
    }
    if (b.q.data) {
      norm_stream(b.input_norm);
      const float* const read = b.side_norm ? pair_with_inputs(b) : p_.normed;
      multiply(b.q, prepare_input(b.q, read, s_.rows), s_.q);
      const bool cross = b.cross != 0;
      const int64_t news = cross ? s_.news : s_.rows;
      if (news) {
        const Input input = prepare_input(b.k, cross ? fresh(b) : read, news);
        multiply(b.k, input, s_.k);
        multiply(b.v, input, s_.v);
      }
      barrier();
      append(b, buffer, news);
      barrier();
      const Span mine = partition(s_.rows * m_.heads, index_, size_);
      for (int64_t task = mine.begin; task < mine.end; ++task) attend(b, buffer, task / m_.heads, task % m_.heads);
      barrier();
      multiply(b.o, padded_input(b.o, s_.gathered), s_.branch);
      barrier();
      residual(float(b.attention_gate));
    }
    norm_stream(b.mlp_norm);
    const Input input = prepare_input(b.gate, p_.normed, s_.rows);
    multiply(b.gate, input, s_.gate);
    multiply(b.up, input, s_.up);
    const Span mine = rows_of(m_.mlp);
    for (int64_t row = 0; row < s_.rows && mine.begin < mine.end; ++row) {
      s_.tables.block.silu_mul(s_.gate, s_.up, DFQ_FLOAT32, row * m_.mlp + mine.begin, mine.end - mine.begin, s_.gate);
    }
    barrier();
    multiply(b.down, padded_input(b.down, s_.gate), s_.branch);
    barrier();
    residual(float(b.mlp_gate));
  }

  void barrier() { s_.barrier.wait(size_); }

  // x [count, hidden] of the model's type -> rows padded with zeros
  void widen(const void* x, int64_t count, float* to) {
    for (int64_t row = 0; row < count; ++row, to += width_) {
      s_.tables.dense.load(x, s_.type, row * m_.hidden, m_.hidden, to);
      std::fill(to + m_.hidden, to + width_, 0.0f);
    }
  }

  void rmsnorm(const float* x, int64_t count, const float* gain, float* to) {
    for (int64_t row = 0; row < count; ++row, x += width_, to += width_) {
      s_.tables.block.rmsnorm(x, DFQ_FLOAT32, m_.hidden, gain, float(m_.eps), to);
      std::fill(to + m_.hidden, to + width_, 0.0f);
    }
  }

  void norm_stream(const float* gain) { rmsnorm(p_.hidden, s_.rows, gain, p_.normed); }

  // the new features as a cross block reads them
  const float* fresh(const dfq_draft_block& b) {
    if (!b.feature_norm) return p_.fresh;
    rmsnorm(p_.fresh, s_.news, b.feature_norm, p_.normed_fresh);
    return p_.normed_fresh;
  }

  // [norm(x), norm(h)] of every row, from norm(h)
  const float* pair_with_inputs(const dfq_draft_block& b) {
    const int64_t stride = padded(2 * m_.hidden);
    for (int64_t row = 0; row < s_.rows; ++row) {
      float* const to = p_.pair + row * stride;
      s_.tables.block.rmsnorm(p_.second + row * width_, DFQ_FLOAT32, m_.hidden, b.side_norm, float(m_.eps), to);
      std::memcpy(to + m_.hidden, p_.normed + row * width_, size_t(m_.hidden) * 4);
      std::fill(to + 2 * m_.hidden, to + stride, 0.0f);
    }
    return p_.pair;
  }

  void residual(float factor) {
    for (int64_t row = 0; row < s_.rows; ++row) {
      s_.tables.draft.add(p_.hidden + row * width_, s_.branch + row * m_.hidden, factor, m_.hidden);
    }
  }

  // --- products: a thread takes whole stretches of sixteen outputs -----------------------------------------------

  struct Input {
    const float* x;
    int64_t rows;
  };

  Span rows_of(int64_t n) const {
    const Span mine = partition(ceil_div(n, DENSE_ROWS), index_, size_);
    return {std::min(n, mine.begin * DENSE_ROWS), std::min(n, mine.end * DENSE_ROWS)};
  }

  // x [rows][k padded] as the operand of products with `l` and those stored like it
  Input prepare_input(const dfq_draft_linear& l, const float* x, int64_t rows) {
    if (l.kind == DFQ_TILES) {
      const int64_t stride = padded(l.k), size = s_.type == DFQ_FLOAT32 ? 4 : 2;
      for (int64_t row = 0; row < rows; ++row) {
        s_.tables.dense.store(x + row * stride, l.k, s_.type, p_.narrow + row * l.k * size, 0);
      }
      s_.tables.tile16.prepare_float({p_.narrow, s_.type, rows}, tiles_of(l), p_.prepared, p_.sums);
    }
    return {x, rows};
  }

  // shared x [rows][k], all of it
  Input padded_input(const dfq_draft_linear& l, const float* x) {
    const int64_t stride = padded(l.k);
    if (stride == l.k) return prepare_input(l, x, s_.rows);
    for (int64_t row = 0; row < s_.rows; ++row) {
      std::memcpy(p_.input + row * stride, x + row * l.k, size_t(l.k) * 4);
      std::fill(p_.input + row * stride + l.k, p_.input + (row + 1) * stride, 0.0f);
    }
    return prepare_input(l, p_.input, s_.rows);
  }

  void multiply(const dfq_draft_linear& l, const Input& input, float* out) {
    const Span mine = rows_of(l.n);
    if (mine.begin >= mine.end) return;
    if (l.kind != DFQ_TILES) {
      const DenseWeight weight = {l.data, l.kind == DFQ_CODES8 ? l.scale : nullptr, int(l.kind), l.k, l.k};
      s_.tables.dense.dense(input.x, input.rows, padded(l.k), weight, mine.begin, mine.end, out, l.n);
      for (int64_t row = 0; l.bias && row < input.rows; ++row) {
        s_.tables.draft.add(out + row * l.n + mine.begin, l.bias + mine.begin, 1.0f, mine.end - mine.begin);
      }
      return;
    }
    const Tile16Weight weight = tiles_of(l);
    Tile16Call call = {&weight, p_.prepared, p_.sums,    nullptr,
                      nullptr, nullptr,     input.rows, {out, DFQ_FLOAT32, l.bias}};
    s_.tables.tile16.decode_float(call, s_.type, mine.begin / TILE16_ROWS, ceil_div(mine.end, TILE16_ROWS));
  }

  // --- attention -------------------------------------------------------------------------------------------------

  // RoPE of a self block or the norm of a cross block, on one head
  void norm_and_rope(float* x, const float* gain, bool cross, int64_t row) {
    const int64_t dim = m_.head_dim;
    if (gain) s_.tables.block.rmsnorm(x, DFQ_FLOAT32, dim, gain, float(m_.eps), x);
    if (cross) return;
    const int64_t angle = s_.positions[row] * dim;
    s_.tables.block.rope(x, DFQ_FLOAT32, 0, 1, dim, s_.cos + angle, s_.sin + angle);
  }

  void append(const dfq_draft_block& b, const dfq_draft_buffer& buffer, int64_t news) {
    const int64_t dim = m_.head_dim, first = b.cross ? s_.cross_at : s_.at;
    const Span mine = partition(news * m_.kv_heads, index_, size_);
    for (int64_t pair = mine.begin; pair < mine.end; ++pair) {
      const int64_t row = pair / m_.kv_heads, head = pair % m_.kv_heads;
      const int64_t to = (head * buffer.capacity + first + row) * dim;
      norm_and_rope(s_.k + pair * dim, b.k_norm, b.cross != 0, row);
      s_.tables.dense.store(s_.k + pair * dim, dim, s_.type, buffer.k, to);
      s_.tables.dense.store(s_.v + pair * dim, dim, s_.type, buffer.v, to);
    }
  }

  void attend(const dfq_draft_block& b, const dfq_draft_buffer& buffer, int64_t row, int64_t head) {
    const int64_t dim = m_.head_dim, size = s_.type == DFQ_FLOAT32 ? 4 : 2;
    const int64_t from = head / (m_.heads / m_.kv_heads) * buffer.capacity * dim * size;
    std::memcpy(p_.query, s_.q + (row * m_.heads + head) * dim, size_t(dim) * 4);
    norm_and_rope(p_.query, b.q_norm, b.cross != 0, row);
    const float factor = LOG2_E / std::sqrt(float(dim));
    for (int64_t i = 0; i < dim; ++i) p_.query[i] *= factor;
    std::fill(p_.query + dim, p_.query + padded(dim), 0.0f);
    DraftQuery query = {};
    query.query = p_.query, query.dim = dim, query.type = s_.type;
    query.k = static_cast<const char*>(buffer.k) + from, query.v = static_cast<const char*>(buffer.v) + from;
    if (b.cross) {
      query.prefix = 1 + std::max<int64_t>(0, std::min(s_.features, s_.positions[row]));
      query.tail_at = 1 + s_.features, query.tail = s_.drafted;
      query.tree = s_.cross_tree ? s_.cross_tree + row * s_.drafted : nullptr;
      query.slope = b.slopes ? b.slopes[head] * LOG2_E : 0.0f;
      query.newest = s_.positions[row] - 1, query.places = s_.places;
    } else {
      query.prefix = query.tail_at = s_.verified, query.tail = s_.at + s_.rows - s_.verified;
      query.tree = s_.tree ? s_.tree + row * query.tail : nullptr;
    }
    s_.tables.draft.attend(query, p_.scores, p_.mixed);
    std::memcpy(s_.gathered + (row * m_.heads + head) * dim, p_.mixed, size_t(dim) * 4);
  }

  DraftCall& s_;
  const dfq_draft& m_;
  const DraftThreadMemory p_;
  const int64_t width_, index_, size_;
};

}  // namespace
}  // namespace dfq
