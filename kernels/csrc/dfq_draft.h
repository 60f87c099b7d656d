// One pass of a DREAM draft (dfrot/draft/dream.py) over a few new slots in one call: self-attention blocks, gated
// cross-attention to features, gated MLPs, residuals. Conventions of dfq_kernels.h; tables of int64 as in dfq_decoder.h.
//
// Everything between the inputs and the outputs is float32, whatever the weights are stored in: a draft need not round as
// its modules do, since every guess is verified.
#pragma once

#include "dfq_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// How a weight [n, k] of a draft is stored: dense float32 or bfloat16 (numbered as DFQ_FLOAT32, DFQ_BFLOAT16), one byte a
// code with scale bfloat16 [n] and zero point 128, or tiles of 4-bit codes as in cpu/tile16/tile16_kernels.h.
enum { DFQ_CODES8 = 8, DFQ_TILES = 16 };

struct dfq_draft_linear {
  const void* data;
  const uint16_t* scale;
  const uint8_t* zero;
  int64_t kind, n, k, group;
};

// norms: gains as float32. slopes [heads]: of the lean of a cross block, or null. attention_gate, mlp_gate: factors of
// what the two halves add. q.data null: a block without attention. cross: 1 where keys and values come from features.
struct dfq_draft_block {
  const float *input_norm, *mlp_norm, *q_norm, *k_norm, *slopes;
  double attention_gate, mlp_gate;
  int64_t cross;
  struct dfq_draft_linear q, k, v, o, gate, up, down;
};

// dtype: of inputs, outputs and buffers, float32 or bfloat16.
struct dfq_draft {
  const struct dfq_draft_block* blocks;
  const float* final_norm;
  int64_t dtype, layers, hidden, heads, kv_heads, head_dim, mlp;
  double eps;
};

// Keys and values of one block, [kv_heads, capacity, head_dim] each.
struct dfq_draft_buffer {
  void *k, *v;
  int64_t capacity;
};

// x [rows, hidden], slots at `positions` [rows] (rows of cos and sin [.., head_dim] float32) -> out [rows, hidden], behind
// the final norm. rows and news at most 16, together with what is in the buffers within their capacity.
// Self blocks: the rows' keys go to buffer rows from `at` on; a slot sees the buffer rows below `verified`, and of those
// from there to at + rows the ones that tree [rows, at + rows - verified] shows it (null: all).
// Cross blocks: fresh [news, hidden] become keys from buffer row `cross_at` on. Row 0 is the null key, always visible; rows
// 1 .. features are those of positions 0 .. features - 1, visible to slots of larger positions; the `drafted` ones behind
// them have positions `places` and are visible where cross_tree [rows, drafted] says so (null: everywhere).
DFQ_API int dfq_draft_pass(const struct dfq_draft* draft, const struct dfq_draft_buffer* buffers, const void* x,
                           int64_t rows, const void* fresh, int64_t news, const float* cos, const float* sin,
                           const int64_t* positions, int64_t at, int64_t verified, const uint8_t* tree,
                           int64_t cross_at, int64_t features, int64_t drafted, const int64_t* places,
                           const uint8_t* cross_tree, void* out, int64_t threads);

// out [m, n] = x [m, k] w[n, k]^T, all of `dtype`, float32 or bfloat16; float32 sums, and every row has the bits that it has
// alone. For a few rows: the weight is read once for every 16 of them.
DFQ_API int dfq_dense(const void* x, int64_t dtype, int64_t m, int64_t n, int64_t k, const void* weight, void* out,
                      int64_t threads);

// Size of each struct in int64 words: the caller's tables must agree.
DFQ_API int dfq_draft_words(int64_t* linear, int64_t* block, int64_t* draft, int64_t* buffer, int64_t threads);

#ifdef __cplusplus
}
#endif
