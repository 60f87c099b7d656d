// A pass of a draft (dfq_draft.h): what an instruction set provides. draft.cpp owns memory, the partition over threads and
// the C interface. Everything is float32, in sixteen lanes added up in one order: the same bits with every instruction
// set and for every number of rows. Nothing inline with external linkage here, see kernels.h.
#pragma once
#include <cstdint>

namespace dfq {

constexpr int64_t DENSE_ROWS = 16;  // output rows that a thread takes at once, as many as a tile has

struct DenseWeight {  // [n][k]: float32, bfloat16, or codes of 8 bits with scale [n] and zero point 128
  const void* data;
  const uint16_t* scale;
  int kind;
  int64_t k;
};

// One query of one head over rows of a buffer [..][dim]: 0 .. prefix - 1, then `tail` rows from tail_at on, of which `tree`
// (null: all) tells the visible ones. slope > 0: every score loses slope times how far its row is from `newest`, the
// first row being exempt; row i of the prefix stands at i - 1, the tail at `places`.
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
  void (*load)(const void* x, int type, int64_t at, int64_t count, float* out);
  void (*store)(const float* x, int64_t count, int type, void* out, int64_t at);
  // outputs begin .. end - 1 of x [rows][stride] (zeros from k to the next multiple of 16) -> out [rows][out_stride]
  void (*dense)(const float* x, int64_t rows, int64_t stride, const DenseWeight& weight, int64_t begin, int64_t end,
                float* out, int64_t out_stride);
  // the same of bfloat16 x and weight, with zeros to the next multiple of 32; null: the instruction set has no such product
  void (*dense_narrow)(const uint16_t* x, int64_t rows, int64_t stride, const DenseWeight& weight, int64_t begin,
                       int64_t end, float* out, int64_t out_stride);
  void (*add)(float* x, const float* y, float factor, int64_t count);  // x += factor * y
  // scores: prefix + tail floats and 16 more; out [dim padded to 16]
  void (*attend)(const DraftQuery& query, float* scores, float* out);
};

extern const DraftKernels scalar_draft;
#ifdef DFQ_HAVE_AVX2
extern const DraftKernels avx2_draft;
#endif
#ifdef DFQ_HAVE_NEON
extern const DraftKernels neon_draft;
#endif
#ifdef DFQ_HAVE_AVX512
extern const DraftKernels avx512_draft;
#endif

}  // namespace dfq
