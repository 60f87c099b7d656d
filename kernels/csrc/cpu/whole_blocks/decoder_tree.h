// Attention of a tree of tokens, row by row: the keys and values of a row's ancestors are put behind the prefix first.
// A thread takes whole kv heads, so that nobody else reads what it moves.
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
#include "whole_blocks/decoder_rows.h"

namespace dfq {
namespace {

class TreeAttention : protected RowAttention {
 public:
  using RowAttention::RowAttention;

 protected:
  void attend_tree(const dfq_block& b, const dfq_cache& cache) {
    const Span mine = partition(m_.kv_heads, index_, size_);
    for (int64_t head = mine.begin; head < mine.end; ++head) {
      for (int64_t row = 0; row < s_.rows; ++row) {
        stage_node(b, head, row);
        quantize_queries(b, head, row);
      }
      int64_t placed[DECODE_ROWS];  // the node behind the prefix at every depth
      std::fill(placed, placed + DECODE_ROWS, int64_t(-1));
      for (int64_t row = 0; row < s_.rows; ++row) {
        for (int64_t node = row; node >= 0; node = s_.parents[node]) {
          const int64_t depth = s_.depth[node];
          if (placed[depth] == node) continue;
          unstage_node(cache, head, node, depth);
          placed[depth] = node;
        }
        attend_row(cache, head, row, s_.position + s_.depth[row] + 1, partial(head, 0));
      }
      for (int64_t row = 0; row < s_.rows; ++row) {
        if (placed[row] != row) unstage_node(cache, head, row, row);
      }
    }
  }

 private:
  int64_t staged_index(bool value, int64_t head, int64_t row) const {
    return (int64_t(value) * s_.rows + row) * m_.kv_heads + head;
  }

  void stage_node(const dfq_block& b, int64_t head, int64_t row) {
    const int64_t from = (row * m_.kv_heads + head) * m_.head_dim, bytes = s_.call.k.bytes;
    const int64_t k = staged_index(false, head, row), v = staged_index(true, head, row);
    float key[MAX_HEAD_DIM];
    cached_key(b, head, row, from, key);
    store(key, DFQ_FLOAT32, s_.staged_codes + k * bytes, s_.staged_scale + k, s_.staged_zero + k);
    store(s_.v + from * s_.size, s_.type, s_.staged_codes + v * bytes, s_.staged_scale + v, s_.staged_zero + v);
  }

  // Node `row` to position + `offset` of the cache
  void unstage_node(const dfq_cache& cache, int64_t head, int64_t row, int64_t offset) {
    const int64_t to = (s_.position + offset) * m_.kv_heads + head, bytes = s_.call.k.bytes;
    const int64_t k = staged_index(false, head, row), v = staged_index(true, head, row);
    std::memcpy(cache.k_packed + to * bytes, s_.staged_codes + k * bytes, size_t(bytes));
    std::memcpy(cache.v_packed + to * bytes, s_.staged_codes + v * bytes, size_t(bytes));
    cache.k_scale[to] = s_.staged_scale[k], cache.v_scale[to] = s_.staged_scale[v];
    if (cache.k_zero) cache.k_zero[to] = s_.staged_zero[k];
    if (cache.v_zero) cache.v_zero[to] = s_.staged_zero[v];
  }
};

}  // namespace
}  // namespace dfq
