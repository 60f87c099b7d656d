// dfq_prefill_*: the two halves of a decoder block for the many positions of a prompt. Rows are normed, rotated and
// quantized while they lie in a cache, a slab of lines at a time; the products are those of dfq_tiled.h.
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

constexpr int64_t SLAB = 512;        // lines whose activations are held at a time
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
  Prefill(const dfq_decoder& model, const dfq_block& block, int64_t threads)
      : m_(model), b_(block), threads_(threads), type_(int(model.dtype)), size_(type_ == DFQ_FLOAT32 ? 4 : 2),
        use_(kernels().block) {
    const int64_t q = m_.heads * m_.head_dim, kv = m_.kv_heads * m_.head_dim;
    widest_ = std::max({m_.hidden, m_.mlp, q});
    const int64_t values = widest_ + std::max(m_.mlp, kv) + std::max(m_.mlp, kv) + m_.hidden;
    char* next = static_cast<char*>(scratch(SCRATCH_SLAB, SLAB * (values * size_ + widest_ + 8) + 8 * 64));
    const auto take = [&](int64_t bytes) {
      char* const here = next;
      next += divided(bytes, 64) * 64;
      return here;
    };
    slab_.x = take(SLAB * widest_ * size_), slab_.gate = take(SLAB * std::max(m_.mlp, kv) * size_);
    slab_.up = take(SLAB * std::max(m_.mlp, kv) * size_), slab_.branch = take(SLAB * m_.hidden * size_);
    slab_.codes = reinterpret_cast<int8_t*>(take(SLAB * widest_));
    slab_.scale = reinterpret_cast<float*>(take(SLAB * 4)), slab_.zero = reinterpret_cast<int32_t*>(take(SLAB * 4));
  }

  // Lines first .. first + count - 1 of hidden, which start at `hidden`, up to the queries and the cache.
  void before(const dfq_cache& cache, const char* hidden, const float* cos, const float* sin, int64_t batch,
              int64_t rows, int64_t position, bool turned, int64_t first, int64_t count, char* query) {
    const int64_t width = m_.hidden * size_, kv = m_.kv_heads * m_.head_dim;
    over(count, m_.hidden, [&](int64_t line, float*) {
      normalise(hidden + line * width, b_.input_norm, line);
      ready(b_.q, line);
    });
    multiply(b_.q, count, query), multiply(b_.k, count, slab_.gate), multiply(b_.v, count, slab_.up);
    over(count, m_.heads * m_.head_dim + 2 * kv, [&](int64_t line, float* buffer) {
      const int64_t sequence = (first + line) / rows, row = (first + line) % rows;
      const float *c = cos + row * m_.head_dim, *s = sin + row * m_.head_dim;
      place(query, line, m_.heads, b_.q_norm, c, s);
      char* const q = query + line * m_.heads * m_.head_dim * size_;
      if (turned && m_.r3_base_t) rotate(q, type_, m_.heads, q, buffer);
      place(slab_.gate, line, m_.kv_heads, b_.k_norm, c, s);
      append(cache, line, ((position + row) * batch + sequence) * m_.kv_heads, buffer);
    });
  }

  void after(char* hidden, const char* mixed, int64_t count) {
    const int64_t width = m_.hidden * size_, q = m_.heads * m_.head_dim;
    over(count, q, [&](int64_t line, float* buffer) {
      rotated(b_.o, mixed + line * q * size_, line, buffer);
      ready(b_.o, line);
    });
    multiply(b_.o, count, slab_.branch);
    over(count, m_.hidden, [&](int64_t line, float*) {
      use_.add(hidden, slab_.branch, type_, line * m_.hidden, m_.hidden);
      normalise(hidden + line * width, b_.mlp_norm, line);
      ready(b_.gate, line);
    });
    multiply(b_.gate, count, slab_.gate), multiply(b_.up, count, slab_.up);
    over(count, 4 * m_.mlp, [&](int64_t line, float* buffer) {
      use_.gated(slab_.gate, slab_.up, type_, line * m_.mlp, m_.mlp, slab_.gate);
      rotated(b_.down, slab_.gate + line * m_.mlp * size_, line, buffer);
      ready(b_.down, line);
    });
    multiply(b_.down, count, slab_.branch);
    over(count, m_.hidden,
         [&](int64_t line, float*) { use_.add(hidden, slab_.branch, type_, line * m_.hidden, m_.hidden); });
  }

 private:
  // function(line, buffer) for each of `count` lines; buffer: for the Hadamard transforms of one line.
  template <typename Function>
  void over(int64_t count, int64_t width, Function function) {
    const int64_t floats = std::max(2 * widest_, m_.kv_heads * m_.head_dim + 2 * std::max<int64_t>(m_.r3_block, 1)) +
                           m_.kv_heads;
    over_rows(count, width, threads_, [&](int64_t begin, int64_t end) {
      float* const buffer = static_cast<float*>(scratch(SCRATCH_WORKER, floats * 4));
      for (int64_t line = begin; line < end; ++line) function(line, buffer);
    });
  }

  char* row_of(const dfq_linear& l, int64_t line) const { return slab_.x + line * l.k * size_; }

  void normalise(const char* x, const float* weight, int64_t line) {
    use_.norm(x, type_, m_.hidden, weight, float(m_.eps), slab_.x + line * m_.hidden * size_);
  }

  // x, rotated where `l` asks for it, becomes its row `line`.
  void rotated(const dfq_linear& l, const char* x, int64_t line, float* buffer) {
    char* const to = row_of(l, line);
    if (!l.base_t) {
      std::memcpy(to, x, size_t(l.k * size_));
      return;
    }
    kernels().rows.hadamard_rows(x, type_, l.block, l.base_t, l.order, to, buffer, 0, l.k / l.block);
  }

  void ready(const dfq_linear& l, int64_t line) {
    if (l.bits == 16) return;
    kernels().rows.quantize_rows(row_of(l, line), type_, l.k, int(l.bits), l.symmetric != 0, float(l.clip),
                            slab_.codes + line * l.k, slab_.scale + line, slab_.zero + line, 0, 1);
  }

  void multiply(const dfq_linear& l, int64_t count, void* out) {
    if (l.bits == 16) {
      check(dfq_tiled_w4a16(slab_.x, type_, count, l.n, l.k, l.tiles, l.scale, l.zero, l.group, l.bias, out, threads_));
      return;
    }
    check(dfq_tiled_w4a8(slab_.codes, slab_.scale, l.symmetric ? nullptr : slab_.zero, count, l.n, l.k, l.tiles,
                         l.scale, l.zero, l.sums, l.group, l.bias, type_, out, threads_));
  }

  // The heads of one line: their norm, where there is one, then RoPE.
  void place(char* x, int64_t line, int64_t heads, const float* gain, const float* cos, const float* sin) {
    const int64_t dim = m_.head_dim, from = line * heads * dim;
    for (int64_t head = 0; gain && head < heads; ++head) {
      char* const at = x + (from + head * dim) * size_;
      use_.norm(at, type_, dim, gain, float(m_.eps), at);
    }
    use_.turn(x, type_, from, heads, dim, cos, sin);
  }

  void rotate(const void* x, int type, int64_t heads, void* to, float* buffer) {
    kernels().rows.hadamard_rows(x, type, m_.r3_block, m_.r3_base_t, m_.r3_order, to, buffer, 0,
                            heads * m_.head_dim / m_.r3_block);
  }

  void append(const dfq_cache& cache, int64_t line, int64_t to, float* buffer) {
    const int64_t dim = m_.head_dim, heads = m_.kv_heads, bytes = divided(dim * m_.kv_bits, 8);
    const char* const v = slab_.up + line * heads * dim * size_;
    float* const keys = buffer + 2 * std::max<int64_t>(m_.r3_block, 1);
    uint8_t* const unused = reinterpret_cast<uint8_t*>(keys + heads * dim);  // zero points of a symmetric cache
    use_.widen(slab_.gate, type_, line * heads * dim, heads * dim, keys);
    if (m_.r3_base_t) rotate(keys, DFQ_FLOAT32, heads, keys, buffer);
    store(keys, DFQ_FLOAT32, cache.k_packed + to * bytes, cache.k_scale + to, cache.k_zero ? cache.k_zero + to : unused);
    store(v, type_, cache.v_packed + to * bytes, cache.v_scale + to, cache.v_zero ? cache.v_zero + to : unused);
  }

  void store(const void* x, int type, uint8_t* packed, uint16_t* scale, uint8_t* zero) {
    kernels().rows.kv_quantize_rows(x, type, m_.head_dim, int(m_.kv_bits), m_.kv_symmetric != 0, float(m_.kv_clip), packed,
                               scale, zero, 0, m_.kv_heads);
  }

  const dfq_decoder& m_;
  const dfq_block& b_;
  const int64_t threads_;
  const int type_;
  const int64_t size_;
  const BlockKernels& use_;
  int64_t widest_;
  Slab slab_;
};

}  // namespace
}  // namespace dfq

using namespace dfq;

int dfq_prefill_before(const dfq_decoder* model, int64_t layer, const dfq_cache* caches, const void* hidden,
                       const float* cos, const float* sin, int64_t batch, int64_t rows, int64_t position,
                       int64_t rotate, void* query,
                       int64_t threads) {
  const dfq_decoder& m = *model;
  if (!valid_decoder(m) || layer < 0 || layer >= m.layers || batch < 1 || rows < 1 || position < 0) {
    return DFQ_BAD_ARGUMENT;
  }
  return guarded([&] {
    Prefill run(m, m.blocks[layer], threads);
    const int64_t size = m.dtype == DFQ_FLOAT32 ? 4 : 2, lines = batch * rows;
    for (int64_t first = 0; first < lines; first += SLAB) {
      const char* x = static_cast<const char*>(hidden) + first * m.hidden * size;
      char* q = static_cast<char*>(query) + first * m.heads * m.head_dim * size;
      run.before(caches[layer], x, cos, sin, batch, rows, position, rotate != 0, first, std::min(SLAB, lines - first), q);
    }
  });
}

int dfq_prefill_after(const dfq_decoder* model, int64_t layer, void* hidden, const void* mixed, int64_t lines,
                      int64_t threads) {
  const dfq_decoder& m = *model;
  if (!valid_decoder(m) || layer < 0 || layer >= m.layers || lines < 1) return DFQ_BAD_ARGUMENT;
  return guarded([&] {
    Prefill run(m, m.blocks[layer], threads);
    const int64_t size = m.dtype == DFQ_FLOAT32 ? 4 : 2;
    for (int64_t first = 0; first < lines; first += SLAB) {
      char* x = static_cast<char*>(hidden) + first * m.hidden * size;
      const char* from = static_cast<const char*>(mixed) + first * m.heads * m.head_dim * size;
      run.after(x, from, std::min(SLAB, lines - first));
    }
  });
}

int dfq_prefill_norm(const dfq_decoder* model, void* x, int64_t lines, int64_t threads) {
  const dfq_decoder& m = *model;
  if (!valid_type(m.dtype) || lines < 0) return DFQ_BAD_ARGUMENT;
  return guarded([&] {
    const int64_t bytes = m.hidden * (m.dtype == DFQ_FLOAT32 ? 4 : 2);
    over_rows(lines, m.hidden, threads, [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) {
        char* const at = static_cast<char*>(x) + line * bytes;
        kernels().block.norm(at, int(m.dtype), m.hidden, m.final_norm, float(m.eps), at);
      }
    });
  });
}
