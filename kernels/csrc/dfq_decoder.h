// A whole stack of decoder blocks in one call: norm, q/k/v, RoPE, cache append, attention, output projection, norm, gated
// MLP, residuals, for a few positions of a few sequences. Conventions of dfq_kernels.h, weights as in dfq_tiled.h.
//
// The model is described by tables of int64 (addresses among them), which the caller fills once; their layout is that of
// the structs below. What the torch modules round to the model's dtype is rounded here, in the same order.
#pragma once

#include "dfq_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// One linear on quantized or 16-bit activations. bits: of the activations, 16 = not quantized. base [order, order],
// transposed, of the Hadamard transform in blocks of `block` that its input takes first; null: none.
struct dfq_linear {
  const uint8_t* tiles;
  const uint16_t* scale;
  const uint8_t* zero;
  const int32_t* sums;
  const float* bias;
  int64_t n, k, group;
  int64_t bits, symmetric;
  double clip;
  const float* base_t;
  int64_t order, block;
};

// Gains of the norms as float32. q_norm, k_norm [head_dim] or null. q, k, v read the first norm, gate and up the second.
struct dfq_block {
  const float *input_norm, *mlp_norm, *q_norm, *k_norm;
  struct dfq_linear q, k, v, o, gate, up, down;
};

// Keys and values of one block as dfq_kv_append writes them. k_sink, v_sink [sinks, batch, kv_heads, head_dim] of the
// model's dtype: the first positions in full precision; unread where the model has no sinks.
struct dfq_cache {
  uint8_t* k_packed;
  uint16_t* k_scale;
  uint8_t* k_zero;
  uint8_t* v_packed;
  uint16_t* v_scale;
  uint8_t* v_zero;
  const void *k_sink, *v_sink;
};

// base_t: of the Hadamard transform of keys and queries (R3), or null. window: positions that a row sees, itself
// included; 0 = all. sinks: leading positions read from k_sink and v_sink.
struct dfq_decoder {
  const struct dfq_block* blocks;
  const float* final_norm;
  int64_t dtype, layers, hidden, heads, kv_heads, head_dim, mlp, window, sinks;
  double eps, scaling;
  int64_t kv_bits, kv_symmetric;
  double kv_clip;
  const float* r3_base_t;
  int64_t r3_order, r3_block;
};

// hidden [batch, rows, hidden] of the model's dtype: the embeddings of the tokens at `position` and on -> out, of the same
// shape and dtype, behind the final norm. caches [layers] have room for position + rows positions. cos, sin
// [rows, head_dim] float32. batch * rows at most 16.
DFQ_API int dfq_decode(const struct dfq_decoder* model, const struct dfq_cache* caches, const void* hidden,
                       const float* cos, const float* sin, int64_t batch, int64_t rows, int64_t position, void* out,
                       int64_t threads);

// The same for a tree of tokens of one sequence: parents [rows] (-1: none; else below the node's own number) in place of
// one behind the other, cos and sin of position + depth. Every row comes out as if its ancestors alone preceded it, to the
// last bit; the caches hold node i at position + i.
DFQ_API int dfq_decode_tree(const struct dfq_decoder* model, const struct dfq_cache* caches, const void* hidden,
                            const float* cos, const float* sin, int64_t rows, int64_t position, const int64_t* parents,
                            void* out, int64_t threads);

// The two halves of one block for many positions (a prompt), around an attention that the caller computes.
// Before: hidden [batch, rows, hidden] -> query [batch, rows, heads, head_dim], turned by RoPE and, if `rotate`, by R3; keys
// and values go to the cache. After: mixed [batch, rows, heads * head_dim], the attention's result; hidden is updated in place.
DFQ_API int dfq_prefill_before(const struct dfq_decoder* model, int64_t layer, const struct dfq_cache* caches,
                               const void* hidden, const float* cos, const float* sin, int64_t batch, int64_t rows,
                               int64_t position, int64_t rotate, void* query, int64_t threads);
DFQ_API int dfq_prefill_after(const struct dfq_decoder* model, int64_t layer, void* hidden, const void* mixed,
                              int64_t lines, int64_t threads);
// x [lines, hidden] in place: the norm behind the last block.
DFQ_API int dfq_prefill_norm(const struct dfq_decoder* model, void* x, int64_t lines, int64_t threads);

// Size of each struct in int64 words: the caller's tables must agree.
DFQ_API int dfq_decoder_words(int64_t* linear, int64_t* block, int64_t* cache, int64_t* decoder, int64_t threads);

#ifdef __cplusplus
}
#endif
