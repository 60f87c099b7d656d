// A pass of a draft: what an instruction set provides. draft.cpp owns memory, the partition over threads and the C
// interface. Everything is float32, in sixteen lanes added up in one order, as in dense_kernels.h.
#pragma once
#include <cstdint>

#include "common/isa.h"

namespace dfq {

// One query of one head over rows of a buffer [..][dim]: 0 .. prefix - 1, then `tail` rows from tail_at on, of which
// `tree` (null: all) tells the visible ones. slope > 0: every score loses slope times how far its row is from `newest`,
// the first row being exempt; row i of the prefix stands at i - 1, the tail at `places`.
struct DraftQuery {
  const float* query;  // [dim padded to 16], zeros behind; times scaling / ln 2
  const void *k, *v;
  int type;            // of the buffer
  int64_t dim, prefix, tail_at, tail;
  const uint8_t* tree;
  float slope;         // over ln 2
  int64_t newest;
  const int64_t* places;
};

struct DraftKernels {
  void (*add)(float* x, const float* y, float factor, int64_t count);  // x += factor * y
  // scores: prefix + tail floats and 16 more; out [dim padded to 16]
  void (*attend)(const DraftQuery& query, float* scores, float* out);
};

}  // namespace dfq

namespace dfq::DFQ_ISA {

extern const DraftKernels draft_table;

}  // namespace dfq::DFQ_ISA
