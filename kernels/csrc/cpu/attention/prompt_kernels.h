// Attention of many query rows over a packed cache (prompts): what an instruction set provides. prompt.cpp owns memory,
// the partition over threads and the C interface.
//
// Keys and values are written once, as codes minus zero points, into panels that the products read in order; scales stay
// beside them, one a position. A block of query rows then passes over the positions that it sees, a tile at a time, with
// a running softmax (arXiv 2205.14135, algorithm 1): nothing quadratic is ever in memory, and tiles that no row of the
// block sees are left out. Tiles begin at multiples of PROMPT_TILE of the cache, so a row has the same bits whatever
// rows are computed beside it.
#pragma once
#include <cstdint>

#include "attention/attention_kernels.h"
#include "common/isa.h"

namespace dfq {

constexpr int64_t PROMPT_TILE = 128;   // positions of a tile
constexpr int64_t PROMPT_LINES = 192;  // lines (query rows times heads of a group) of a block, about

struct PromptCall {
  StoredRows k, v;
  int bits;
  int64_t batch, rows, group, kv_heads, length;  // `rows` new positions are the last of `length`
  int64_t window;                                // positions that a row sees, itself included; 0: all
  const void *k_sink, *v_sink;                   // [sinks][batch][kv_heads][dim]: exact, of the first positions
  int64_t sinks;
  int type;        // of queries, sinks and outputs
  float scaling;   // of the scores, times log2(e)
  const void* query;  // [batch][rows][kv_heads][group][k.dim]
  void* out;          // [batch][rows][kv_heads][group][v.dim]
  // panels of some (batch, kv head) pairs
  int64_t first_pair, padded;         // padded: length rounded up to PROMPT_TILE
  char *keys, *values;                // [pair][key_bytes], [pair][value_bytes]
  float *key_scale, *value_scale;     // [pair][padded]; those of keys times `scaling`
};

struct PromptKernels {
  int64_t (*key_bytes)(const PromptCall& call);    // of the panels of one pair
  int64_t (*value_bytes)(const PromptCall& call);
  int64_t (*memory)(const PromptCall& call, int64_t rows);  // bytes of scratch of `attend`, 64-byte aligned
  // positions begin .. end - 1, multiples of PROMPT_TILE, of pair first_pair + pair
  void (*fill)(const PromptCall& call, int64_t pair, int64_t begin, int64_t end);
  // query rows begin .. end - 1 of that pair
  void (*attend)(const PromptCall& call, int64_t pair, int64_t begin, int64_t end, void* memory);
};

}  // namespace dfq

namespace dfq::DFQ_ISA {

extern const PromptKernels prompt_table;

}  // namespace dfq::DFQ_ISA
