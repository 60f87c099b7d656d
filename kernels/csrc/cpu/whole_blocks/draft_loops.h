// The loops behind draft.h, in sixteen lanes: one copy per instruction set. Needs convert.inc and lanes.inc.

#ifndef DFQ_OWN_TAKE
typedef uint16_t Shorts __attribute__((vector_size(32)));
typedef uint8_t Codes __attribute__((vector_size(16)));

// Sixteen values of x from element `at` on as float32; 8-bit codes as they are, less their zero point.
template <int KIND>
inline __attribute__((always_inline)) void take(const void* x, int64_t at, Floats& to) {
  if constexpr (KIND == DFQ_FLOAT32) {
    load_lanes(static_cast<const float*>(x) + at, to);
  } else if constexpr (KIND == DFQ_BFLOAT16) {
    Shorts in;
    std::memcpy(&in, static_cast<const uint16_t*>(x) + at, 32);
    to = Floats(__builtin_convertvector(in, Ints) << 16);
  } else {
    Codes in;
    std::memcpy(&in, static_cast<const uint8_t*>(x) + at, 16);
    to = __builtin_convertvector(__builtin_convertvector(in, Ints) - 128, Floats);
  }
}

inline float total(const Floats& v) { return sum_lanes(v); }
#endif

template <int KIND>
constexpr int64_t bytes_of() {
  return KIND == DFQ_FLOAT32 ? 4 : KIND == DFQ_BFLOAT16 ? 2 : 1;
}

// The same of `count` values; what lies behind them counts as zero once it meets a zero of the other factor.
template <int KIND>
inline __attribute__((always_inline)) void take_some(const void* x, int64_t at, int64_t count, Floats& to) {
  alignas(64) char part[64] = {};
  std::memcpy(part, static_cast<const char*>(x) + at * bytes_of<KIND>(), size_t(count * bytes_of<KIND>()));
  take<KIND>(part, 0, to);
}

// R output rows for M rows of x.
template <int KIND, int R, int M>
void dense_block(const float* x, int64_t stride, const DenseWeight& w, int64_t row, float* out, int64_t out_stride) {
  Floats sums[R][M] = {};
  const int64_t k = w.k;
  int64_t at = 0;
  const char* const next = static_cast<const char*>(w.data) + (row + R) * k * bytes_of<KIND>();
  for (; at + LANES <= k; at += LANES) {
    Floats rows[M];
    for (int i = 0; i < M; ++i) load_lanes(x + i * stride + at, rows[i]);
    for (int r = 0; r < R; ++r) {
      Floats v;
      take<KIND>(w.data, (row + r) * k + at, v);
      if (M == 1) __builtin_prefetch(next + (r * k + at) * bytes_of<KIND>());
      for (int i = 0; i < M; ++i) sums[r][i] += v * rows[i];
    }
  }
  if (at < k) {
    for (int r = 0; r < R; ++r) {
      Floats v, own;
      take_some<KIND>(w.data, (row + r) * k + at, k - at, v);
      for (int i = 0; i < M; ++i) {
        load_lanes(x + i * stride + at, own);
        sums[r][i] += v * own;
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    const float scale = w.scale ? load_bf16(w.scale[row + r]) : 1.0f;
    for (int i = 0; i < M; ++i) out[i * out_stride + row + r] = total(sums[r][i]) * scale;
  }
}

template <int KIND, int M>
void dense_rows(const float* x, int64_t stride, const DenseWeight& w, int64_t begin, int64_t end, float* out,
                int64_t out_stride) {
  int64_t row = begin;
  for (; row + WEIGHT_ROWS <= end; row += WEIGHT_ROWS) {
    dense_block<KIND, WEIGHT_ROWS, M>(x, stride, w, row, out, out_stride);
  }
  for (; row < end; ++row) dense_block<KIND, 1, M>(x, stride, w, row, out, out_stride);
}

// A stretch of weights stays in the nearest caches while all rows of x pass.
template <int KIND>
void dense_of(const float* x, int64_t rows, int64_t stride, const DenseWeight& w, int64_t begin, int64_t end, float* out,
              int64_t out_stride) {
  for (int64_t from = begin; from < end; from += DENSE_ROWS) {
    const int64_t to = least(end, from + DENSE_ROWS);
    int64_t i = 0;
    for (; i + X_ROWS <= rows; i += X_ROWS) {
      dense_rows<KIND, X_ROWS>(x + i * stride, stride, w, from, to, out + i * out_stride, out_stride);
    }
    for (; i + 2 <= rows; i += 2) {
      dense_rows<KIND, 2>(x + i * stride, stride, w, from, to, out + i * out_stride, out_stride);
    }
    if (i < rows) dense_rows<KIND, 1>(x + i * stride, stride, w, from, to, out + i * out_stride, out_stride);
  }
}

void dense(const float* x, int64_t rows, int64_t stride, const DenseWeight& w, int64_t begin, int64_t end, float* out,
           int64_t out_stride) {
  if (w.kind == DFQ_FLOAT32) dense_of<DFQ_FLOAT32>(x, rows, stride, w, begin, end, out, out_stride);
  else if (w.kind == DFQ_BFLOAT16) dense_of<DFQ_BFLOAT16>(x, rows, stride, w, begin, end, out, out_stride);
  else dense_of<DFQ_CODES8>(x, rows, stride, w, begin, end, out, out_stride);
}

void add_times(float* x, const float* y, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] += factor * y[i];
}

template <int TYPE>
inline float dot(const float* query, const void* rows, int64_t row, int64_t dim) {
  Floats sum = {}, q, k;
  int64_t at = 0;
  for (; at + LANES <= dim; at += LANES) {
    load_lanes(query + at, q);
    take<TYPE>(rows, row * dim + at, k);
    sum += q * k;
  }
  if (at < dim) {
    load_lanes(query + at, q);
    take_some<TYPE>(rows, row * dim + at, dim - at, k);
    sum += q * k;
  }
  return total(sum);
}

template <int TYPE>
void mix(const void* rows, int64_t from, int64_t count, int64_t dim, const float* weights, float* out) {
  for (int64_t at = 0; at < dim; at += LANES) {
    const int64_t width = least(LANES, dim - at);
    Floats sum, v;
    load_lanes(out + at, sum);
    for (int64_t i = 0; i < count; ++i) {
      if (width == LANES) take<TYPE>(rows, (from + i) * dim + at, v);
      else take_some<TYPE>(rows, (from + i) * dim + at, width, v);
      sum += v * weights[i];
    }
    store_lanes(sum, out + at);
  }
}

constexpr float HIDDEN = -1e30f;

template <int TYPE>
void attend_of(const DraftQuery& a, float* scores, float* out) {
  const int64_t count = a.prefix + a.tail;
  for (int64_t i = 0; i < a.prefix; ++i) {
    const int64_t far = i ? a.newest - (i - 1) : 0;
    scores[i] = dot<TYPE>(a.query, a.k, i, a.dim) - a.slope * float(far > 0 ? far : 0);
  }
  for (int64_t i = 0; i < a.tail; ++i) {
    const int64_t far = a.places ? a.newest - a.places[i] : 0;
    const bool seen = !a.tree || a.tree[i];
    const float score = dot<TYPE>(a.query, a.k, a.tail_at + i, a.dim) - a.slope * float(far > 0 ? far : 0);
    scores[a.prefix + i] = seen ? score : HIDDEN;
  }
  for (int64_t i = count; i % LANES; ++i) scores[i] = HIDDEN;
  Floats high = Floats{} + HIDDEN, sum = {}, x, p;
  for (int64_t i = 0; i < count; i += LANES) {
    load_lanes(scores + i, x);
    pick_greater(x, high, x, high, high);
  }
  const float top = max_lanes(high, HIDDEN);
  for (int64_t i = 0; i < count; i += LANES) {
    load_lanes(scores + i, x);
    raise(x - top, p);
    sum += p;
    store_lanes(p, scores + i);
  }
  for (int64_t at = 0; at < a.dim; at += LANES) store_lanes(Floats{}, out + at);
  mix<TYPE>(a.v, 0, a.prefix, a.dim, scores, out);
  mix<TYPE>(a.v, a.tail_at, a.tail, a.dim, scores + a.prefix, out);
  const float factor = 1.0f / total(sum);
  for (int64_t i = 0; i < a.dim; ++i) out[i] *= factor;
}

void attend(const DraftQuery& query, float* scores, float* out) {
  if (query.type == DFQ_FLOAT32) attend_of<DFQ_FLOAT32>(query, scores, out);
  else attend_of<DFQ_BFLOAT16>(query, scores, out);
}
