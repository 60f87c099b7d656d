// dfq_prefill_*: the two halves of a decoder block for the many positions of a prompt, a slab of lines at a time. Where
// there are lines enough, every thread takes slabs of its own through a whole half: they stay in its caches, and nobody
// waits. Where there are few, all threads share one and wait for each other. The products are those of tile16.cpp.
#include <algorithm>
#include <cstring>
#include <new>

#include "common/kernels.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "dfq_abi.h"
#include "whole_blocks/valid_decoder.h"

namespace dfq {
namespace {

constexpr int64_t OWN_LINES = 96;       // lines of a slab that one thread takes, about
constexpr int64_t FEWEST_LINES = 24;    // of such a slab: more than DECODE_ROWS, whose products round otherwise
constexpr int64_t SHARED_LINES = 512;   // lines of a slab that all threads share
constexpr int64_t HEIGHT = 6;           // slabs begin at multiples of it: what products of many rows take at once
constexpr int SCRATCH_SLAB = 3;      // a slot of scratch() that the products leave alone

void check(int code) {
  if (code != DFQ_OK) throw std::bad_alloc();  // shapes were checked before: only memory can be missing
}

struct Slab {  // operands of one slab of lines
  char *x, *gate, *up, *branch;  // of the model's dtype
  int8_t* codes;
  float* scale;
  int32_t* zero;
};

class Prefill {
 public:
  Prefill(const dfq_decoder& model, const dfq_block& block, int64_t lines, int64_t threads)
      : m_(model), b_(block), threads_(threads), type_(int(model.dtype)), size_(type_ == DFQ_FLOAT32 ? 4 : 2),
        kernels_(kernels().block) {
    const int64_t q = m_.heads * m_.head_dim, kv = m_.kv_heads * m_.head_dim;
    max_width_ = std::max({m_.hidden, m_.mlp, q});
    const int64_t values = max_width_ + std::max(m_.mlp, kv) + std::max(m_.mlp, kv) + m_.hidden;
    char* next = static_cast<char*>(scratch(SCRATCH_SLAB, lines * (values * size_ + max_width_ + 8) + 8 * 64));
    const auto take = [&](int64_t bytes) {
      char* const here = next;
      next += ceil_div(bytes, 64) * 64;
      return here;
    };
    slab_.x = take(lines * max_width_ * size_), slab_.gate = take(lines * std::max(m_.mlp, kv) * size_);
    slab_.up = take(lines * std::max(m_.mlp, kv) * size_), slab_.branch = take(lines * m_.hidden * size_);
    slab_.codes = reinterpret_cast<int8_t*>(take(lines * max_width_));
    slab_.scale = reinterpret_cast<float*>(take(lines * 4)), slab_.zero = reinterpret_cast<int32_t*>(take(lines * 4));
  }

  // Lines first .. first + count - 1 of hidden, which start at `hidden`, up to the queries and the cache.
  void before(const dfq_cache& cache, const char* hidden, const float* cos, const float* sin, int64_t batch,
              int64_t rows, int64_t position, bool transposed, int64_t first, int64_t count, char* query) {
    const int64_t width = m_.hidden * size_, kv = m_.kv_heads * m_.head_dim;
    for_each_line(count, m_.hidden, [&](int64_t line, float*) {
      rmsnorm(hidden + line * width, b_.input_norm, line);
      quantize_row(b_.q, line);
    });
    multiply(b_.q, count, query), multiply(b_.k, count, slab_.gate), multiply(b_.v, count, slab_.up);
    for_each_line(count, m_.heads * m_.head_dim + 2 * kv, [&](int64_t line, float* buffer) {
      const int64_t sequence = (first + line) / rows, row = (first + line) % rows;
      const float *c = cos + row * m_.head_dim, *s = sin + row * m_.head_dim;
      norm_and_rope(query, line, m_.heads, b_.q_norm, c, s);
      char* const q = query + line * m_.heads * m_.head_dim * size_;
      if (transposed && m_.r3_base_t) rotate(q, type_, m_.heads, q, buffer);
      norm_and_rope(slab_.gate, line, m_.kv_heads, b_.k_norm, c, s);
      append(cache, line, ((position + row) * batch + sequence) * m_.kv_heads, position + row < m_.sinks, buffer);
    });
  }

  void after(char* hidden, const char* mixed, int64_t count) {
    const int64_t width = m_.hidden * size_, q = m_.heads * m_.head_dim;
    for_each_line(count, q, [&](int64_t line, float* buffer) {
      rotate_row(b_.o, mixed + line * q * size_, line, buffer);
      quantize_row(b_.o, line);
    });
    multiply(b_.o, count, slab_.branch);
    for_each_line(count, m_.hidden, [&](int64_t line, float*) {
      kernels_.add(hidden, slab_.branch, type_, line * m_.hidden, m_.hidden);
      rmsnorm(hidden + line * width, b_.mlp_norm, line);
      quantize_row(b_.gate, line);
    });
    multiply(b_.gate, count, slab_.gate), multiply(b_.up, count, slab_.up);
    for_each_line(count, 4 * m_.mlp, [&](int64_t line, float* buffer) {
      kernels_.silu_mul(slab_.gate, slab_.up, type_, line * m_.mlp, m_.mlp, slab_.gate);
      rotate_row(b_.down, slab_.gate + line * m_.mlp * size_, line, buffer);
      quantize_row(b_.down, line);
    });
    multiply(b_.down, count, slab_.branch);
    for_each_line(count, m_.hidden,
         [&](int64_t line, float*) { kernels_.add(hidden, slab_.branch, type_, line * m_.hidden, m_.hidden); });
  }

 private:
  // function(line, buffer) for each of `count` lines; buffer: for the Hadamard transforms of one line.
  template <typename Function>
  void for_each_line(int64_t count, int64_t width, Function function) {
    const int64_t floats = std::max(2 * max_width_, m_.kv_heads * m_.head_dim + 2 * std::max<int64_t>(m_.r3_block, 1)) +
                           m_.kv_heads;
    parallel_rows(count, width, threads_, [&](int64_t begin, int64_t end) {
      float* const buffer = static_cast<float*>(scratch(SCRATCH_WORKER, floats * 4));
      for (int64_t line = begin; line < end; ++line) function(line, buffer);
    });
  }

  char* row_of(const dfq_linear& l, int64_t line) const { return slab_.x + line * l.k * size_; }

  void rmsnorm(const char* x, const float* weight, int64_t line) {
    kernels_.rmsnorm(x, type_, m_.hidden, weight, float(m_.eps), slab_.x + line * m_.hidden * size_);
  }

  // x, rotated where `l` asks for it, becomes its row `line`.
  void rotate_row(const dfq_linear& l, const char* x, int64_t line, float* buffer) {
    char* const to = row_of(l, line);
    if (!l.base_t) {
      std::memcpy(to, x, size_t(l.k * size_));
      return;
    }
    kernels().rows.hadamard_rows(x, type_, l.block, l.base_t, l.order, to, buffer, 0, l.k / l.block);
  }

  void quantize_row(const dfq_linear& l, int64_t line) {
    if (l.bits == 16) return;
    kernels().rows.quantize_rows(row_of(l, line), type_, l.k, int(l.bits), l.symmetric != 0, float(l.clip),
                            slab_.codes + line * l.k, slab_.scale + line, slab_.zero + line, 0, 1);
  }

  void multiply(const dfq_linear& l, int64_t count, void* out) {
    if (l.bits == 16) {
      dfq_tiled_w4a16_args args = {};
      args.x = slab_.x, args.dtype = type_, args.m = count, args.n = l.n, args.k = l.k;
      args.tiles = l.tiles, args.scale = l.scale, args.zero = l.zero, args.group = l.group;
      args.bias = l.bias, args.out = out, args.threads = threads_;
      return check(dfq_tiled_w4a16(&args));
    }
    dfq_tiled_w4a8_args args = {};
    args.q = slab_.codes, args.x_scale = slab_.scale, args.x_zero = l.symmetric ? nullptr : slab_.zero;
    args.m = count, args.n = l.n, args.k = l.k;
    args.tiles = l.tiles, args.scale = l.scale, args.zero = l.zero, args.sums = l.sums, args.group = l.group;
    args.bias = l.bias, args.dtype = type_, args.out = out, args.threads = threads_;
    check(dfq_tiled_w4a8(&args));
  }

  // The heads of one line: their norm, where there is one, then RoPE.
  void norm_and_rope(char* x, int64_t line, int64_t heads, const float* gain, const float* cos, const float* sin) {
    const int64_t dim = m_.head_dim, from = line * heads * dim;
    for (int64_t head = 0; gain && head < heads; ++head) {
      char* const at = x + (from + head * dim) * size_;
      kernels_.rmsnorm(at, type_, dim, gain, float(m_.eps), at);
    }
    kernels_.rope(x, type_, from, heads, dim, cos, sin);
  }

  void rotate(const void* x, int type, int64_t heads, void* to, float* buffer) {
    kernels().rows.hadamard_rows(x, type, m_.r3_block, m_.r3_base_t, m_.r3_order, to, buffer, 0,
                            heads * m_.head_dim / m_.r3_block);
  }

  // The keys and values of one line become the rows from `to` on, and those of a sink also stay exact.
  void append(const dfq_cache& cache, int64_t line, int64_t to, bool is_sink, float* buffer) {
    const int64_t dim = m_.head_dim, heads = m_.kv_heads, bytes = ceil_div(dim * m_.kv_bits, 8);
    const char* const v = slab_.up + line * heads * dim * size_;
    float* const keys = buffer + 2 * std::max<int64_t>(m_.r3_block, 1);
    uint8_t* const unused = reinterpret_cast<uint8_t*>(keys + heads * dim);  // zero points of a symmetric cache
    kernels_.to_float32(slab_.gate, type_, line * heads * dim, heads * dim, keys);
    if (m_.r3_base_t) rotate(keys, DFQ_FLOAT32, heads, keys, buffer);
    for (int64_t i = 0; b_.k_shift && i < heads * dim; ++i) keys[i] -= b_.k_shift[i];
    store(keys, DFQ_FLOAT32, cache.k_packed + to * bytes, cache.k_scale + to,
          cache.k_zero ? cache.k_zero + to : unused);
    store(v, type_, cache.v_packed + to * bytes, cache.v_scale + to, cache.v_zero ? cache.v_zero + to : unused);
    if (!is_sink) return;
    kernels().attention.store(keys, heads * dim, type_, cache.k_sink, to * dim);
    std::memcpy(static_cast<char*>(cache.v_sink) + to * dim * size_, v, size_t(heads * dim * size_));
  }

  void store(const void* x, int type, uint8_t* packed, uint16_t* scale, uint8_t* zero) {
    kernels().rows.kv_quantize_rows(x, type, m_.head_dim, int(m_.kv_bits), m_.kv_symmetric != 0, float(m_.kv_clip),
                                    packed, scale, zero, 0, m_.kv_heads);
  }

  const dfq_decoder& m_;
  const dfq_block& b_;
  const int64_t threads_;
  const int type_;
  const int64_t size_;
  const BlockKernels& kernels_;
  int64_t max_width_;
  Slab slab_;
};

// function(first, count, threads) over slabs of `lines` lines.
template <typename Function>
void for_each_slab(int64_t lines, int64_t threads, Function function) {
  if (threads > 1 && lines / FEWEST_LINES < threads) {
    for (int64_t first = 0; first < lines; first += SHARED_LINES) {
      function(first, std::min(SHARED_LINES, lines - first), threads);
    }
    return;
  }
  const int64_t blocks = ceil_div(lines, HEIGHT), wanted = ceil_div(ceil_div(lines, OWN_LINES), threads) * threads;
  const int64_t slabs = std::clamp<int64_t>(std::min(wanted, lines / FEWEST_LINES), 1, blocks);
  parallel_chunks(slabs, threads, [&](int64_t i) {
    const int64_t first = blocks * i / slabs * HEIGHT, last = std::min(lines, blocks * (i + 1) / slabs * HEIGHT);
    function(first, last - first, 1);
  });
}

}  // namespace
}  // namespace dfq

using namespace dfq;

int dfq_prefill_before(const dfq_prefill_before_args* args) {
  const dfq_decoder& m = *args->model;
  if (!valid_decoder(m) || args->layer < 0 || args->layer >= m.layers || args->batch < 1 || args->rows < 1 ||
      args->position < 0 || !valid_caches(m, args->caches, args->position)) {
    return DFQ_BAD_ARGUMENT;
  }
  return returning_status([&] {
    const int64_t size = m.dtype == DFQ_FLOAT32 ? 4 : 2;
    for_each_slab(args->batch * args->rows, args->threads, [&](int64_t first, int64_t count, int64_t threads) {
      Prefill run(m, m.blocks[args->layer], count, threads);
      const char* x = static_cast<const char*>(args->hidden) + first * m.hidden * size;
      char* q = static_cast<char*>(args->query) + first * m.heads * m.head_dim * size;
      run.before(args->caches[args->layer], x, args->cos, args->sin, args->batch, args->rows, args->position,
                 args->rotate != 0, first, count, q);
    });
  });
}

int dfq_prefill_after(const dfq_prefill_after_args* args) {
  const dfq_decoder& m = *args->model;
  if (!valid_decoder(m) || args->layer < 0 || args->layer >= m.layers || args->lines < 1) return DFQ_BAD_ARGUMENT;
  return returning_status([&] {
    const int64_t size = m.dtype == DFQ_FLOAT32 ? 4 : 2;
    for_each_slab(args->lines, args->threads, [&](int64_t first, int64_t count, int64_t threads) {
      Prefill run(m, m.blocks[args->layer], count, threads);
      char* x = static_cast<char*>(args->hidden) + first * m.hidden * size;
      run.after(x, static_cast<const char*>(args->mixed) + first * m.heads * m.head_dim * size, count);
    });
  });
}

int dfq_prefill_norm(const dfq_prefill_norm_args* args) {
  const dfq_decoder& m = *args->model;
  if (!valid_type(m.dtype) || args->lines < 0) return DFQ_BAD_ARGUMENT;
  return returning_status([&] {
    const int64_t bytes = m.hidden * (m.dtype == DFQ_FLOAT32 ? 4 : 2);
    parallel_rows(args->lines, m.hidden, args->threads, [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) {
        char* const at = static_cast<char*>(args->x) + line * bytes;
        kernels().block.rmsnorm(at, int(m.dtype), m.hidden, m.final_norm, float(m.eps), at);
      }
    });
  });
}
