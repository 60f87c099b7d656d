// What a thread does with single heads of a decoder block: RoPE, R3, codes for the cache.
#pragma once
#include <cstdint>

#include "common/kernels.h"
#include "dfq_abi.h"
#include "whole_blocks/decoder_call.h"

namespace dfq {
namespace {

class DecoderHeads {
 public:
  DecoderHeads(DecoderCall& call_, const DecoderThreadMemory& own, int64_t index, int64_t size)
      : s_(call_), m_(call_.decoder), p_(own), index_(index), size_(size) {}

 protected:
  void barrier() { s_.barrier.wait(size_); }

  float* partial(int64_t pair, int64_t part) const {
    return s_.partial + (pair * s_.parts + part) * s_.rows * s_.group() * (m_.head_dim + 2);
  }

  // A head of one line turns by its position, behind its norm where there is one.
  void norm_and_rope(char* x, int64_t at, const float* gain, int64_t row) {
    const int64_t dim = m_.head_dim;
    char* const head = x + at * s_.size;
    if (gain) s_.tables.block.rmsnorm(head, s_.type, dim, gain, float(m_.eps), head);
    s_.tables.block.rope(x, s_.type, at, 1, dim, s_.cos + row * dim, s_.sin + row * dim);
  }

  void rotate(float* x, int64_t count) {
    if (!m_.r3_base_t) return;
    s_.tables.rows.hadamard_rows(x, DFQ_FLOAT32, m_.r3_block, m_.r3_base_t, m_.r3_order, x, p_.transform, 0,
                              count / m_.r3_block);
  }

  void shift(float* key, const dfq_block& b, int64_t head) {
    const float* const shift = b.k_shift ? b.k_shift + head * m_.head_dim : nullptr;
    for (int64_t i = 0; shift && i < m_.head_dim; ++i) key[i] -= shift[i];
  }

  void store(const void* x, int type, uint8_t* packed, uint16_t* scale, uint8_t* zero) {
    s_.tables.rows.kv_quantize_rows(x, type, m_.head_dim, int(m_.kv_bits), m_.kv_symmetric != 0, float(m_.kv_clip),
                                    packed, scale, zero, 0, 1);
  }

  // The key at `from` of line `row`, as the cache rounds it.
  void cached_key(const dfq_block& b, int64_t head, int64_t row, int64_t from, float* key) {
    norm_and_rope(s_.k, from, b.k_norm, row);
    s_.tables.attention.load(s_.k, s_.type, from, m_.head_dim, key);
    rotate(key, m_.head_dim);
    shift(key, b, head);
  }

  // The key (whose float32 values are left in `key`) and the value at `from` of line `row` become position `to` of a cache,
  // counted in rows of one head.
  void store_position(const dfq_block& b, const dfq_cache& cache, int64_t head, int64_t row, int64_t from, int64_t to,
                      float* key) {
    const int64_t bytes = s_.call.k.bytes;
    uint8_t unused;  // the zero point of a symmetric cache
    cached_key(b, head, row, from, key);
    store(key, DFQ_FLOAT32, cache.k_packed + to * bytes, cache.k_scale + to,
          cache.k_zero ? cache.k_zero + to : &unused);
    store(s_.v + from * s_.size, s_.type, cache.v_packed + to * bytes, cache.v_scale + to,
          cache.v_zero ? cache.v_zero + to : &unused);
  }

  DecoderCall& s_;
  const dfq_decoder& m_;
  const DecoderThreadMemory p_;
  const int64_t index_, size_;
};

}  // namespace
}  // namespace dfq
