// Attention of a batch: lines of different sequences, each at its own position of its own cache. A thread takes a line's
// kv head from the first step to the last, whichever is next: caches of very different lengths keep all threads busy.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "common/limits.h"
#include "dfq_abi.h"
#include "whole_blocks/decoder_call.h"
#include "whole_blocks/decoder_tree.h"

namespace dfq {
namespace {

constexpr int64_t FETCHED_POSITIONS = 512;  // at most, of a line; behind them the processor sees where it goes

class BatchAttention : protected TreeAttention {
 public:
  using TreeAttention::TreeAttention;

 protected:
  void attend_batch(const dfq_block& b, int64_t layer) {
    const int64_t pairs = s_.lines * m_.kv_heads, size = s_.parts * s_.group() * (m_.head_dim + 2);
    if (index_ < s_.lines) fetch(index_, layer);
    for (int64_t pair; (pair = s_.taken[layer].fetch_add(1, std::memory_order_relaxed)) < pairs;) {
      const int64_t line = pair / m_.kv_heads, head = pair % m_.kv_heads;
      const dfq_cache& cache = s_.caches[line * m_.layers + layer];
      if (head == 0 && line + size_ < s_.lines) fetch(line + size_, layer);
      append_line(b, cache, line, head);
      quantize_queries(b, head, line);
      attend_row(cache, head, line, s_.positions[line] + 1, s_.partial + pair * size);
    }
  }

 private:
  // What is stored for a line, ahead of its attention: rows of a cache are too short for the processor to see a pattern
  // in them in time, and the weights of a step push out of the caches what the last one has read.
  void fetch(int64_t line, int64_t layer) const {
    const dfq_cache& cache = s_.caches[line * m_.layers + layer];
    const int64_t length = s_.positions[line], begin = m_.window ? s_.first[line] : 0;
    const int64_t end = std::min(length, begin + FETCHED_POSITIONS), heads = m_.kv_heads, bytes = s_.call.k.bytes;
    const auto rows = [&](const void* from, int64_t width) {
      const char* const array = static_cast<const char*>(from);
      for (int64_t at = begin * heads * width; array && at < end * heads * width; at += 64)
        __builtin_prefetch(array + at, 0, 2);
    };
    rows(cache.k_packed, bytes), rows(cache.k_scale, 2), rows(cache.k_zero, 1);
    rows(cache.v_packed, bytes), rows(cache.v_scale, 2), rows(cache.v_zero, 1);
  }

  void append_line(const dfq_block& b, const dfq_cache& cache, int64_t line, int64_t head) {
    float key[MAX_HEAD_DIM];
    const int64_t from = (line * m_.kv_heads + head) * m_.head_dim, to = s_.positions[line] * m_.kv_heads + head;
    store_position(b, cache, head, line, from, to, key);
  }
};

}  // namespace
}  // namespace dfq
