// Whether the tables of a decoder fit together.
#pragma once
#include <cstdint>

#include "common/limits.h"
#include "common/parallel.h"
#include "dfq_abi.h"
#include "tile16/tile16_kernels.h"

namespace dfq {
namespace {

inline bool valid(const dfq_linear& l, int64_t n, int64_t k) {
  return l.n == n && l.k == k && (l.group <= 0 || l.group >= k || l.group % TILE16_DEPTH == 0) && l.bits >= 2 &&
         (!l.base_t || (l.order > 0 && l.block > 0 && k % l.block == 0)) && (l.bits == 16 || l.symmetric || l.sums);
}

inline bool valid_decoder(const dfq_decoder& m) {
  const int64_t q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
  if (!valid_type(m.dtype) || !valid_bits(m.kv_bits) || m.kv_heads < 1 || m.heads % m.kv_heads) return false;
  if (m.head_dim < 2 || m.head_dim > MAX_HEAD_DIM || m.head_dim % 2) return false;
  for (int64_t i = 0; i < m.layers; ++i) {
    const dfq_block& b = m.blocks[i];
    if (!valid(b.q, q, m.hidden) || !valid(b.k, kv, m.hidden) || !valid(b.v, kv, m.hidden)) return false;
    if (!valid(b.o, m.hidden, q) || !valid(b.gate, m.mlp, m.hidden) || !valid(b.up, m.mlp, m.hidden)) return false;
    if (!valid(b.down, m.hidden, m.mlp)) return false;
  }
  return true;
}

// Whether new rows from `position` on can be appended: sinks among them need their place.
inline bool valid_caches(const dfq_decoder& m, const dfq_cache* caches, int64_t position) {
  for (int64_t i = 0; position < m.sinks && i < m.layers; ++i) {
    if (!caches[i].k_sink || !caches[i].v_sink) return false;
  }
  return true;
}

}  // namespace
}  // namespace dfq
