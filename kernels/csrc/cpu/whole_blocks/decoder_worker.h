// One thread's way through the blocks of a decoder.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "attention/attention_kernels.h"
#include "common/integers.h"
#include "common/limits.h"
#include "common/parallel_region.h"
#include "dfq_abi.h"
#include "tile16/tile16_kernels.h"
#include "whole_blocks/decoder_call.h"
#include "whole_blocks/decoder_batch.h"

namespace dfq {
namespace {

class DecoderWorker : private BatchAttention {
 public:
  using BatchAttention::BatchAttention;

  void run() {
    const int64_t bytes = s_.lines * m_.hidden * s_.size;
    if (s_.positions && s_.lines >= size_ && size_ > 1) share_lines();
    std::memcpy(p_.hidden, s_.hidden, size_t(bytes));
    for (int64_t layer = 0; layer < m_.layers; ++layer) {
      block(m_.blocks[layer], layer);
      if (s_.states && index_ == 0)
        std::memcpy(static_cast<char*>(s_.states) + layer * bytes, p_.hidden, size_t(bytes));
    }
    rmsnorm(m_.final_norm);
    if (!shares_ && index_ != 0) return;
    const int64_t width = m_.hidden * s_.size;
    std::memcpy(static_cast<char*>(s_.out) + own_.begin * width, rows_.normed + own_.begin * width,
                size_t((own_.end - own_.begin) * width));
  }

 private:
  // Many lines are not computed by every thread for itself: each norms, rotates and quantizes its own, for all to read.
  void share_lines() {
    shares_ = true;
    own_ = partition(s_.lines, index_, size_);
    rows_ = s_.shared_rows;
  }

  void block(const dfq_block& b, int64_t layer) {
    const dfq_cache& cache = s_.caches[layer];  // of a batch: that of its first line
    prefetch(b, cache);
    rmsnorm(b.input_norm);
    prepare_input(b.q, rows_.normed);
    const dfq_linear* const heads[3] = {&b.q, &b.k, &b.v};
    void* const outs[3] = {s_.q, s_.k, s_.v};
    multiply(heads, outs, 3);
    barrier();
    if (s_.positions) attend_batch(b, layer);
    else s_.parents ? attend_tree(b, cache) : attend(b, cache);
    barrier();
    prepare_input(b.o, s_.mixed);
    multiply(b.o, s_.branch);
    barrier();
    add_branch();
    rmsnorm(b.mlp_norm);
    prepare_input(b.gate, rows_.normed);
    gate_and_up(b);
    barrier();
    prepare_input(b.down, s_.act);
    multiply(b.down, s_.branch);
    barrier();
    add_branch();
  }

  void add_branch() {
    s_.tables.block.add(p_.hidden, s_.branch, s_.type, own_.begin * m_.hidden, (own_.end - own_.begin) * m_.hidden);
  }

  // What attention will read in small pieces, each of which would otherwise be waited for: the weights of a step push it
  // out of the caches.
  void prefetch(const dfq_block& b, const dfq_cache& cache) {
    const auto lines = [](const void* from, int64_t bytes) {
      for (int64_t at = 0; from && at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at);
    };
    const int64_t width = m_.kv_heads * m_.head_dim, sinks = s_.call.sinks * s_.batch * width * s_.size;
    lines(b.k_shift, width * 4);
    lines(cache.k_sink, sinks), lines(cache.v_sink, sinks);
  }

  void rmsnorm(const float* weight) {
    for (int64_t line = own_.begin; line < own_.end; ++line) {
      const int64_t at = line * m_.hidden * s_.size;
      s_.tables.block.rmsnorm(p_.hidden + at, s_.type, m_.hidden, weight, float(m_.eps), rows_.normed + at);
    }
  }

  // x [lines, k] becomes the operand of products with `l` and its like: rotated, quantized, in the order of the tiles.
  void prepare_input(const dfq_linear& l, const char* x) {
    const Tile16Weight weight = weight_of(l);
    if (l.base_t) {
      const int64_t blocks = l.k / l.block;
      s_.tables.rows.hadamard_rows(x, s_.type, l.block, l.base_t, l.order, rows_.rotated, p_.transform,
                                   own_.begin * blocks, own_.end * blocks);
      x = rows_.rotated;
    }
    if (l.bits == 16) {
      if (shares_) barrier();
      s_.tables.tile16.prepare_float({x, s_.type, s_.lines}, weight, p_.prepared, p_.sums);
      return;
    }
    s_.tables.rows.quantize_rows(x, s_.type, l.k, int(l.bits), l.symmetric != 0, float(l.clip), rows_.codes, rows_.scale,
                              rows_.zero, own_.begin, own_.end);
    if (shares_) barrier();
    const IntegerRows rows = {rows_.codes, rows_.scale, l.symmetric ? nullptr : rows_.zero, s_.lines};
    s_.tables.tile16.prepare_integer(rows, weight, p_.prepared, reinterpret_cast<int32_t*>(p_.sums));
  }

  // Tiles begin .. end - 1 of one product of what prepare_input() left.
  void multiply_tiles(const dfq_linear& l, void* out, int64_t begin, int64_t end) {
    if (begin >= end) return;
    const Tile16Weight weight = weight_of(l);
    Tile16Call call = {&weight, p_.prepared, nullptr, nullptr, nullptr, nullptr, s_.lines, {out, s_.type, l.bias}};
    if (l.bits == 16) {
      call.x_sums = p_.sums;
      s_.tables.tile16.decode_float(call, s_.type, begin, end);
      return;
    }
    call.q_sums = reinterpret_cast<const int32_t*>(p_.sums);
    call.x_scale = rows_.scale, call.x_zero = l.symmetric ? nullptr : rows_.zero;
    s_.tables.tile16.decode_integer(call, begin, end);
  }

  // This thread's share of several products of one input, cut as if they were one.
  void multiply(const dfq_linear* const* linears, void* const* outs, int64_t count) {
    int64_t total = 0, before = 0;
    for (int64_t i = 0; i < count; ++i) total += ceil_div(linears[i]->n, TILE16_ROWS);
    const Span mine = partition(total, index_, size_);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t here = ceil_div(linears[i]->n, TILE16_ROWS);
      multiply_tiles(*linears[i], outs[i], std::max<int64_t>(0, mine.begin - before),
                     std::min(here, mine.end - before));
      before += here;
    }
  }

  void multiply(const dfq_linear& l, void* out) {
    const Span mine = partition(ceil_div(l.n, TILE16_ROWS), index_, size_);
    multiply_tiles(l, out, mine.begin, mine.end);
  }

  void gate_and_up(const dfq_block& b) {
    const Span mine = partition(ceil_div(m_.mlp, TILE16_ROWS), index_, size_);
    multiply_tiles(b.gate, s_.gate, mine.begin, mine.end);
    multiply_tiles(b.up, s_.up, mine.begin, mine.end);
    const int64_t from = mine.begin * TILE16_ROWS, to = std::min(m_.mlp, mine.end * TILE16_ROWS);
    for (int64_t line = 0; line < s_.lines && from < to; ++line) {
      s_.tables.block.silu_mul(s_.gate, s_.up, s_.type, line * m_.mlp + from, to - from, s_.act);
    }
  }

  // --- attention: a thread takes whole kv heads, with the queries that read them ---------------------------------

  void attend(const dfq_block& b, const dfq_cache& cache) {
    AttentionCall call = s_.call;
    call.k.packed = cache.k_packed, call.k.scale = cache.k_scale, call.k.zero = cache.k_zero;
    call.v.packed = cache.v_packed, call.v.scale = cache.v_scale, call.v.zero = cache.v_zero;
    call.k_sink = cache.k_sink, call.v_sink = cache.v_sink;
    const int64_t pairs = s_.batch * m_.kv_heads;
    const Span mine = partition(pairs, index_, size_);
    for (int64_t pair = mine.begin; pair < mine.end; ++pair) {
      append(b, cache, pair);
      quantize_queries(b, pair);
    }
    const bool alone = s_.splits == 1;  // then a thread reads only what it wrote
    if (!alone) barrier();
    const Span tasks = alone ? Span{0, (mine.end - mine.begin) * s_.parts} : partition(pairs * s_.parts, index_, size_);
    for (int64_t task = tasks.begin; task < tasks.end; ++task) {
      const int64_t part = alone ? task % s_.parts : task / pairs;
      const int64_t pair = alone ? mine.begin + task / s_.parts : task % pairs;
      const int64_t sequence = pair / m_.kv_heads, head = pair % m_.kv_heads;
      float* const to = partial(pair, part);
      if (part == s_.splits) {
        s_.tables.attention.attend_sinks(call, sequence, head, to);
      } else {
        const int64_t begin = part * s_.split, end = std::min(call.length, begin + s_.split);
        s_.tables.attention.attend(call, sequence, head, begin, end, p_.attention, to);
      }
    }
    if (!alone) barrier();
    for (int64_t pair = mine.begin; pair < mine.end; ++pair) combine(pair);
  }

  void append(const dfq_block& b, const dfq_cache& cache, int64_t pair) {
    const int64_t dim = m_.head_dim, sequence = pair / m_.kv_heads, head = pair % m_.kv_heads;
    float key[MAX_HEAD_DIM];
    for (int64_t row = 0; row < s_.rows; ++row) {
      const int64_t from = ((sequence * s_.rows + row) * m_.kv_heads + head) * dim;
      const int64_t to = ((s_.position + row) * s_.batch + sequence) * m_.kv_heads + head;
      store_position(b, cache, head, row, from, to, key);
      if (s_.position + row >= m_.sinks) continue;
      s_.tables.attention.store(key, dim, s_.type, cache.k_sink, to * dim);
      std::memcpy(static_cast<char*>(cache.v_sink) + to * dim * s_.size, s_.v + from * s_.size, size_t(dim * s_.size));
    }
  }

  // The queries of one kv head, in fixed point.
  void quantize_queries(const dfq_block& b, int64_t pair) {
    const int64_t dim = m_.head_dim, group = s_.group(), lines = s_.rows * group;
    const int64_t sequence = pair / m_.kv_heads, head = pair % m_.kv_heads;
    float* const x = s_.queries + pair * lines * dim;
    for (int64_t row = 0; row < s_.rows; ++row) {
      const int64_t from = ((sequence * s_.rows + row) * m_.heads + head * group) * dim;
      for (int64_t i = 0; i < group; ++i) norm_and_rope(s_.q, from + i * dim, b.q_norm, row);
      s_.tables.attention.load(s_.q, s_.type, from, group * dim, x + row * group * dim);
    }
    rotate(x, lines * dim);
    const int64_t parts = s_.call.parts, first = pair * lines;
    s_.tables.attention.prepare(x, lines, dim, s_.call.bits, int(parts), s_.call.scaling * LOG2_E,
                             s_.digits + first * parts * s_.call.k.width, s_.steps + first,
                             s_.digit_sums + first * parts);
  }

  void combine(int64_t pair) {
    const int64_t dim = m_.head_dim, group = s_.group(), lines = s_.rows * group;
    const int64_t sequence = pair / m_.kv_heads, head = pair % m_.kv_heads;
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t at = (sequence * s_.rows + line / group) * m_.kv_heads + head;
      s_.tables.attention.combine(partial(pair, 0) + line * (dim + 2), s_.parts, lines * (dim + 2), dim, s_.type,
                                  s_.mixed, (at * group + line % group) * dim);
    }
  }

  bool shares_ = false;
  Span own_ = {0, s_.lines};           // lines that this thread norms, rotates and quantizes
  DecoderRows rows_ = p_.rows;         // where it does
};

}  // namespace
}  // namespace dfq
