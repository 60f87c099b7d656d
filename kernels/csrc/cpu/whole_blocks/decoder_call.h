// One call of dfq_decode: its arguments, what its threads share, and what each of them keeps to itself.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>

#include "attention/attention_kernels.h"
#include "common/arena.h"
#include "common/integers.h"
#include "common/kernels.h"
#include "common/parallel_region.h"
#include "dfq_abi.h"
#include "tile16/tile16_kernels.h"

namespace dfq {
namespace {

inline Tile16Weight weight_of(const dfq_linear& l) {
  const int64_t group = l.group > 0 && l.group < l.k ? l.group : l.k;
  return {l.tiles, l.scale, l.zero, l.sums, l.n, l.k, ceil_div(l.n, TILE16_ROWS) * TILE16_ROWS,
          ceil_div(l.k, TILE16_DEPTH), group, ceil_div(l.k, group)};
}

// Lines behind a norm, behind a rotation, and as codes: [lines][width] each, width the model's widest.
struct DecoderRows {
  char *normed, *rotated;
  int8_t* codes;
  float* scale;   // [lines]
  int32_t* zero;  // [lines]
};

// What one thread keeps to itself.
struct DecoderThreadMemory {
  char *hidden, *prepared;
  DecoderRows rows;
  float *transform, *sums;  // transform: scratch of Hadamard transforms
  char* attention;
};

struct DecoderCall : dfq_decode_args {
  const dfq_decoder& decoder;
  const Kernels& tables;
  int type;
  int64_t size;   // bytes of a value
  int64_t lines;  // batch * rows
  Barrier barrier;
  // shared
  char *q, *k, *v, *mixed, *branch, *gate, *up, *act;
  AttentionCall call;
  float *queries, *steps, *digit_sums, *partial;
  int8_t* digits;
  int64_t* first;
  const int64_t* parents = nullptr;    // of a tree
  const int64_t* positions = nullptr;  // of lines of different sequences, each with caches of its own
  std::atomic<int64_t>* taken = nullptr;  // of every block: pieces of the lines' attention that threads have taken
  DecoderRows shared_rows;  // of a batch
  int64_t* depth;
  uint8_t *staged_codes, *staged_zero;  // keys, then values of a tree: [rows][kv_heads]
  uint16_t* staged_scale;
  int64_t split, splits, parts, memory;

  explicit DecoderCall(const dfq_decode_args& args)
      : dfq_decode_args(args), decoder(*args.model), tables(kernels()), type(int(decoder.dtype)),
        size(decoder.dtype == DFQ_FLOAT32 ? 4 : 2), lines(args.batch * args.rows) {}

  int64_t q_width() const { return decoder.heads * decoder.head_dim; }
  int64_t kv_width() const { return decoder.kv_heads * decoder.head_dim; }
  bool row_by_row() const { return parents || positions; }
  int64_t max_width() const { return std::max({decoder.hidden, decoder.mlp, q_width()}); }
  int64_t group() const { return decoder.heads / decoder.kv_heads; }

  void plan_attention();
  int64_t row_bytes() const { return lines * (max_width() + 8) * (2 * size + 1) + lines * 8 + 5 * 64; }
  DecoderRows lay_out_rows(Arena& arena) const;
  int64_t shared_bytes() const;
  int64_t private_bytes() const;
  void lay_out_shared(Arena arena);
  DecoderThreadMemory lay_out_private(Arena arena) const;
};

inline void DecoderCall::plan_attention() {
  int64_t length = position + rows;
  for (int64_t i = 0; positions && i < lines; ++i) length = std::max(i ? length : 0, positions[i] + 1);
  const int64_t dim = decoder.head_dim, query_lines = (row_by_row() ? 1 : rows) * group();
  call = {};
  const int64_t bytes = ceil_div(dim * decoder.kv_bits, 8);
  call.k = call.v = {nullptr, nullptr, nullptr, dim, bytes, tables.attention.width(dim, int(decoder.kv_bits))};
  call.bits = int(decoder.kv_bits), call.parts = type == DFQ_FLOAT32 ? 3 : 2;
  call.batch = batch, call.rows = rows, call.group = group(), call.kv_heads = decoder.kv_heads, call.length = length;
  call.trees = 1, call.sinks = std::min(decoder.sinks, length), call.type = type, call.scaling = float(decoder.scaling);
  split = query_lines <= 32 ? 512 : 2048, splits = ceil_div(length, split);
  parts = splits + (call.sinks ? 1 : 0);
  memory = tables.attention.memory(call);
}

inline int64_t DecoderCall::shared_bytes() const {
  const int64_t values = 2 * q_width() + 2 * kv_width() + decoder.hidden + 3 * decoder.mlp;
  const int64_t query_lines = q_width() / decoder.head_dim * lines;
  const int64_t attention = query_lines * (decoder.head_dim * 4 + call.parts * call.k.width + 4 + call.parts * 4) +
                            parts * query_lines * (decoder.head_dim + 2) * 4 + lines * 8;
  const int64_t staged = 2 * lines * decoder.kv_heads * (call.k.bytes + 3) + lines * 8;
  return lines * values * size + attention + (parents ? staged : 0) +
         (positions ? decoder.layers * 8 + row_bytes() : 0) + 33 * 64;
}

inline void DecoderCall::lay_out_shared(Arena arena) {
  q = arena.take(lines * q_width() * size), k = arena.take(lines * kv_width() * size);
  v = arena.take(lines * kv_width() * size), mixed = arena.take(lines * q_width() * size);
  branch = arena.take(lines * decoder.hidden * size), gate = arena.take(lines * decoder.mlp * size);
  up = arena.take(lines * decoder.mlp * size), act = arena.take(lines * decoder.mlp * size);
  const int64_t query_lines = decoder.heads * lines;
  queries = arena.take<float>(query_lines * decoder.head_dim);
  digits = arena.take<int8_t>(query_lines * call.parts * call.k.width);
  steps = arena.take<float>(query_lines), digit_sums = arena.take<float>(query_lines * call.parts);
  partial = arena.take<float>(parts * query_lines * (decoder.head_dim + 2));
  first = arena.take<int64_t>(lines);
  if (parents) {
    const int64_t stored = 2 * lines * decoder.kv_heads;
    depth = arena.take<int64_t>(lines);
    staged_codes = arena.take<uint8_t>(stored * call.k.bytes), staged_zero = arena.take<uint8_t>(stored);
    staged_scale = arena.take<uint16_t>(stored);
    for (int64_t i = 0; i < lines; ++i) depth[i] = parents[i] < 0 ? 0 : depth[parents[i]] + 1;
  }
  if (positions) {
    shared_rows = lay_out_rows(arena);
    taken = arena.take<std::atomic<int64_t>>(decoder.layers);
    for (int64_t i = 0; i < decoder.layers; ++i) new (taken + i) std::atomic<int64_t>(0);
  }
  call.query = queries, call.digits = digits, call.steps = steps, call.sums = digit_sums;
  for (int64_t i = 0; i < lines; ++i) {
    const int64_t at = positions ? positions[i] : position + (parents ? depth[i] : i % rows);
    first[i] = decoder.window ? std::max<int64_t>(0, at + 1 - decoder.window) : 0;
  }
  call.first = decoder.window ? first : nullptr;
}

inline DecoderRows DecoderCall::lay_out_rows(Arena& arena) const {
  const int64_t width = max_width() + 8;
  DecoderRows rows;
  rows.normed = arena.take(lines * width * size), rows.rotated = arena.take(lines * width * size);
  rows.codes = arena.take<int8_t>(lines * width);
  rows.scale = arena.take<float>(lines), rows.zero = arena.take<int32_t>(lines);
  return rows;
}

inline int64_t DecoderCall::private_bytes() const {
  const int64_t width = max_width() + 8, block = 2 * std::max<int64_t>(decoder.r3_block, max_width());
  return lines * decoder.hidden * size + row_bytes() + lines * width * 4 + block * 4 + lines * (width / 8 + 1) * 4 +
         memory + 16 * 64;
}

inline DecoderThreadMemory DecoderCall::lay_out_private(Arena arena) const {
  const int64_t width = max_width() + 8;
  DecoderThreadMemory p;
  p.hidden = arena.take(lines * decoder.hidden * size);
  p.rows = lay_out_rows(arena);
  p.prepared = arena.take(lines * width * 4);  // the most that a value takes: two bfloat16 parts
  p.transform = arena.take<float>(2 * std::max<int64_t>(decoder.r3_block, max_width()));
  p.sums = arena.take<float>(lines * (width / 8 + 1));
  p.attention = arena.take(memory);
  return p;
}

}  // namespace
}  // namespace dfq
