// Decode attention on the packed cache: what an instruction set provides. attention.cpp owns memory, the partition over
// threads and the C interface.
//
// Scores and sums are integer products. A query row is written in fixed point, `parts` signed bytes a value (two for
// 16-bit queries, three for float32: steps of max|q| / 2^15 or / 2^22), and multiplied with the stored codes as they
// are; so are the probabilities of one tile of positions, times the scales of the values. What is left in float32
// (softmax, the sums over tiles) is written once for all instruction sets: the results are the same bits on each of
// them.
#pragma once
#include <cstdint>

#include "common/isa.h"

namespace dfq {

constexpr int64_t ATTENTION_TILE = 128;  // positions whose keys, then values, lie unpacked in L1
constexpr int64_t ATTENTION_BLOCK = 4;   // query rows that share one pass over a tile
constexpr int ATTENTION_PARTS = 3;       // most bytes of a fixed-point value
constexpr int64_t ATTENTION_ROWS = 64;   // most query positions of a call

struct StoredRows {  // codes [position][batch][kv_heads][bytes], scale (float16) and zero [position][batch][kv_heads]
  const uint8_t* packed;
  const uint16_t* scale;
  const uint8_t* zero;  // null: 2^(bits-1)
  int64_t dim, bytes;   // values of a row, bytes of a row
  int64_t width;        // values of a row as the products see it, padding included
};

struct AttentionCall {
  StoredRows k, v;
  int bits, parts;
  int64_t batch, rows, group, kv_heads,
      length;                 // `rows` new positions are the last of `length`; group: heads per kv head
  const int64_t* first;       // [batch][rows] first cached position that a row sees, or null: 0
  const uint8_t* tree;        // [trees][rows][rows] which new positions a row sees, or null: those up to itself
  int64_t trees;              // 1 or batch
  const void *k_sink, *v_sink;  // [sinks][batch][kv_heads][dim] exact keys and values
  int64_t sinks;              // 0: none
  const int64_t* sink_start;  // [batch] position of the first sink, or null: 0
  int type;                   // of the sinks and of the output
  float scaling;              // of the scores
  // queries, one line per (batch, kv head, row, head of the group)
  const float* query;    // [lines][k.dim], rotated
  const int8_t* digits;  // [lines][parts][k.width]
  const float* steps;    // [lines] of the fixed point, times scaling / ln 2
  const float* sums;     // [lines][parts] of digits
};

// A partial result, `partial_size(v.dim)` floats a line: largest score m (base 2), sum of 2^(s - m), sums of values.
struct AttentionKernels {
  int64_t (*width)(int64_t dim, int bits);
  void (*load)(const void* x, int type, int64_t at, int64_t count, float* out);
  void (*store)(const float* x, int64_t count, int type, void* out, int64_t at);
  // `count` rows x [count][dim] -> digits, steps and sums as in AttentionCall
  void (*prepare)(const float* x, int64_t count, int64_t dim, int bits, int parts, float factor, int8_t* digits,
                  float* steps, float* sums);
  int64_t (*memory)(const AttentionCall& call);  // bytes of scratch for `attend`, 64-byte aligned
  // all lines of one (batch, kv head) over the positions begin .. end - 1 -> partial [rows * group]
  void (*attend)(const AttentionCall& call, int64_t batch, int64_t head, int64_t begin, int64_t end, void* memory,
                 float* partial);
  void (*attend_sinks)(const AttentionCall& call, int64_t batch, int64_t head, float* partial);
  // parts of one line, `stride` floats apart -> out, v.dim values
  void (*combine)(const float* partial, int64_t count, int64_t stride, int64_t dim, int type, void* out, int64_t at);
};

}  // namespace dfq

namespace dfq::DFQ_ISA {

extern const AttentionKernels attention_table;

}  // namespace dfq::DFQ_ISA
