// Attention of one row of one sequence, as a call of that row alone would compute it, to the last bit.
#pragma once
#include <algorithm>
#include <cstdint>

#include "attention/attention_kernels.h"
#include "common/integers.h"
#include "common/limits.h"
#include "dfq_abi.h"
#include "whole_blocks/decoder_call.h"
#include "whole_blocks/decoder_heads.h"

namespace dfq {
namespace {

class RowAttention : protected DecoderHeads {
 public:
  using DecoderHeads::DecoderHeads;

 protected:
  // The queries of a row are those of a call of one row: [row][kv head][head of the group]
  int64_t line(int64_t head, int64_t row) const { return (row * m_.kv_heads + head) * s_.group(); }

  void quantize_queries(const dfq_block& b, int64_t head, int64_t row) {
    const int64_t dim = m_.head_dim, group = s_.group(), parts = s_.call.parts;
    const int64_t from = (row * m_.heads + head * group) * dim, at = line(head, row);
    float* const x = s_.queries + at * dim;
    for (int64_t i = 0; i < group; ++i) norm_and_rope(s_.q, from + i * dim, b.q_norm, row);
    s_.tables.attention.load(s_.q, s_.type, from, group * dim, x);
    rotate(x, group * dim);
    s_.tables.attention.prepare(x, group, dim, s_.call.bits, int(parts), s_.call.scaling * LOG2_E,
                             s_.digits + at * parts * s_.call.k.width, s_.steps + at, s_.digit_sums + at * parts);
  }

  // Row `row` over the first `length` positions of a cache. memory: of parts * group * (head_dim + 2) values.
  void attend_row(const dfq_cache& cache, int64_t head, int64_t row, int64_t length, float* memory) {
    const int64_t dim = m_.head_dim, group = s_.group(), at = line(0, row), width = s_.call.k.width;
    AttentionCall call = s_.call;
    call.k.packed = cache.k_packed, call.k.scale = cache.k_scale, call.k.zero = cache.k_zero;
    call.v.packed = cache.v_packed, call.v.scale = cache.v_scale, call.v.zero = cache.v_zero;
    call.k_sink = cache.k_sink, call.v_sink = cache.v_sink;
    call.rows = 1, call.length = length, call.sinks = std::min(m_.sinks, length);
    call.query = s_.queries + at * dim, call.digits = s_.digits + at * call.parts * width;
    call.steps = s_.steps + at, call.sums = s_.digit_sums + at * call.parts;
    call.first = m_.window ? s_.first + row : nullptr;
    const int64_t splits = ceil_div(call.length, s_.split), size = group * (dim + 2);
    for (int64_t part = 0; part < splits; ++part) {
      const int64_t begin = part * s_.split, end = std::min(call.length, begin + s_.split);
      s_.tables.attention.attend(call, 0, head, begin, end, p_.attention, memory + part * size);
    }
    if (call.sinks) s_.tables.attention.attend_sinks(call, 0, head, memory + splits * size);
    for (int64_t i = 0; i < group; ++i) {
      s_.tables.attention.combine(memory + i * (dim + 2), splits + (call.sinks ? 1 : 0), size, dim, s_.type, s_.mixed,
                               (row * m_.heads + head * group + i) * dim);
    }
  }
};

}  // namespace
}  // namespace dfq
