// The C interface: argument checks, choice of instruction set, partition over threads. Work is cut along rows or
// output columns only, so that no sum depends on the number of threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <system_error>

#include "../dfq_kernels.h"
#include "kernels.h"

namespace dfq {
namespace {

constexpr int ABI = 1;
constexpr int64_t SMALL = 1 << 16;        // multiply-adds or elements below which threads do not pay
constexpr int64_t TILE_BYTES = 256 << 10;  // unpacked weights of one chunk: half of a usual L2 cache

bool supported(int64_t isa) {
  if (isa == 0) return true;
#ifdef DFQ_HAVE_AVX2
  if (isa == 1) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
#endif
  return false;
}

std::atomic<int> chosen{supported(1) ? 1 : 0};

const Kernels& kernels() {
#ifdef DFQ_HAVE_AVX2
  if (chosen == 1) return avx2_kernels;
#endif
  return scalar_kernels;
}

template <typename T>
std::unique_ptr<T[]> scratch(int64_t count) {
  return std::unique_ptr<T[]>(new T[size_t(std::max<int64_t>(count, 1))]);
}

// Runs function(begin, end) over `count` items in chunks of `step`.
template <typename Function>
void over(int64_t count, int64_t step, int64_t threads, Function function) {
  struct Context {
    Function* function;
    int64_t count, step;
    std::atomic<bool> failed{false};
  } context{&function, count, step, {}};
  parallel(
      (count + step - 1) / step, threads,
      [](void* raw, int64_t chunk) {
        Context& c = *static_cast<Context*>(raw);
        try {
          (*c.function)(chunk * c.step, std::min(c.count, (chunk + 1) * c.step));
        } catch (...) {
          c.failed = true;  // only allocation throws; no exception may cross a thread or the C interface
        }
      },
      &context);
  if (context.failed) throw std::bad_alloc();
}

template <typename Function>
int guarded(Function function) {
  try {
    function();
    return DFQ_OK;
  } catch (...) {
    return DFQ_NO_MEMORY;
  }
}

// Rows per chunk: a few chunks per thread, none tiny.
int64_t row_step(int64_t rows, int64_t width, int64_t threads) {
  return std::max<int64_t>({1, SMALL / std::max<int64_t>(width, 1), rows / (4 * std::max<int64_t>(threads, 1))});
}

// Output columns per chunk: unpacked weights fit in cache, every thread gets some, small products stay whole.
int64_t column_step(int64_t m, int64_t n, int64_t k, int64_t column_bytes, int64_t threads) {
  if (m * n * k < SMALL) return std::max<int64_t>(n, 1);
  const int64_t fits = std::max<int64_t>(2, TILE_BYTES / std::max<int64_t>(column_bytes, 1));
  const int64_t fair = std::max<int64_t>(2, (n + 2 * threads - 1) / (2 * threads));
  return std::min<int64_t>({fits, fair, 32}) / 2 * 2;
}

bool valid_type(int64_t type) { return type >= DFQ_FLOAT32 && type <= DFQ_FLOAT16; }

Weight weight_of(const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t n, int64_t k, int64_t group) {
  return {packed, scale, zero, n, k, group, group ? (k + group - 1) / group : 1};
}

}  // namespace
}  // namespace dfq

using namespace dfq;

int dfq_abi_version() { return ABI; }
int dfq_isa() { return chosen; }
int dfq_isa_supported(int isa) { return supported(isa) ? 1 : 0; }

int dfq_set_isa(int isa) {
  if (!supported(isa)) return DFQ_BAD_ARGUMENT;
  chosen = int(isa);
  return DFQ_OK;
}

int dfq_quantize_per_token(const void* x, int64_t type, int64_t rows, int64_t k, int64_t bits, int64_t symmetric,
                           float clip, int8_t* codes, float* scale, int32_t* zero, int64_t threads) {
  if (!valid_type(type) || bits < 2 || bits > 8) return DFQ_BAD_ARGUMENT;
  const Kernels& run = kernels();
  return guarded([&] {
    over(rows, row_step(rows, k, threads), threads, [&](int64_t begin, int64_t end) {
      run.quantize_rows(x, int(type), k, int(bits), symmetric != 0, clip, codes, scale, zero, begin, end);
    });
  });
}

int dfq_hadamard(const void* x, int64_t type, int64_t rows, int64_t block, const float* base, int64_t order, void* out,
                 int64_t threads) {
  if (!valid_type(type) || order < 1 || block % order) return DFQ_BAD_ARGUMENT;
  const Kernels& run = kernels();
  return guarded([&] {
    over(rows, row_step(rows, block, threads), threads, [&](int64_t begin, int64_t end) {
      auto buffer = scratch<float>(2 * block);
      run.hadamard_rows(x, int(type), block, base, order, out, buffer.get(), begin, end);
    });
  });
}

int dfq_w4a16_mm(const void* x, int64_t type, int64_t m, int64_t n, int64_t k, const uint8_t* packed,
                 const uint16_t* scale, const uint8_t* zero, int64_t group, void* out, int64_t threads) {
  if (!valid_type(type) || group < 0) return DFQ_BAD_ARGUMENT;
  const Kernels& run = kernels();
  return guarded([&] {
    const Weight weight = weight_of(packed, scale, zero, n, k, group);
    std::unique_ptr<float[]> rows, result;
    const float* in = static_cast<const float*>(x);
    float* to = static_cast<float*>(out);
    if (type != DFQ_FLOAT32) {
      rows = scratch<float>(m * k);
      result = scratch<float>(m * n);
      over(m, row_step(m, k, threads), threads, [&](int64_t begin, int64_t end) {
        const uint16_t* from = static_cast<const uint16_t*>(x) + begin * k;
        run.to_float(from, int(type), (end - begin) * k, rows.get() + begin * k);
      });
      in = rows.get();
      to = result.get();
    }
    over(n, column_step(m, n, k, 4 * k, threads), threads, [&](int64_t begin, int64_t end) {
      auto buffer = scratch<float>((end - begin) * k);
      run.float_mm(in, m, weight, buffer.get(), to, begin, end);
    });
    if (type != DFQ_FLOAT32) {
      over(m, row_step(m, n, threads), threads, [&](int64_t begin, int64_t end) {
        run.from_float(to + begin * n, (end - begin) * n, int(type), static_cast<uint16_t*>(out) + begin * n);
      });
    }
  });
}

int dfq_w4a8_mm(const int8_t* q, const float* x_scale, const int32_t* x_zero, int64_t m, int64_t n, int64_t k,
                const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t group, int64_t a_bits,
                float* out, int64_t threads) {
  if (group < 0 || a_bits < 2 || a_bits > 8) return DFQ_BAD_ARGUMENT;
  const Kernels& run = kernels();
  return guarded([&] {
    const Weight weight = weight_of(packed, scale, zero, n, k, group);
    const int64_t stride = (k + 31) / 32 * 32;
    std::unique_ptr<int8_t[]> padded;
    if (stride != k) {
      padded = scratch<int8_t>(m * stride);
      for (int64_t row = 0; row < m; ++row) {
        std::memcpy(padded.get() + row * stride, q + row * k, size_t(k));
        std::memset(padded.get() + row * stride + k, 0, size_t(stride - k));
      }
    }
    auto sums = scratch<int32_t>(m * weight.groups);
    over(m, row_step(m, k, threads), threads, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t g = 0; g < weight.groups; ++g) {
          const int64_t last = group ? std::min(k, (g + 1) * group) : k;
          int32_t sum = 0;
          for (int64_t j = g * group; j < last; ++j) sum += q[row * k + j];
          sums[size_t(row * weight.groups + g)] = sum;
        }
      }
    });
    const Tokens tokens = {padded ? padded.get() : q, sums.get(), x_scale, x_zero, m, stride};
    over(n, column_step(m, n, k, stride, threads), threads, [&](int64_t begin, int64_t end) {
      // codes, then their sums per group (aligned: stride is a multiple of 32)
      auto buffer = scratch<int32_t>((end - begin) * (stride / 4 + weight.groups));
      run.integer_mm(tokens, weight, int(a_bits), reinterpret_cast<uint8_t*>(buffer.get()), out, begin, end);
    });
  });
}

int dfq_kv_quantize(const void* x, int64_t type, int64_t rows, int64_t width, int64_t bits, int64_t symmetric, float clip,
                    uint8_t* packed, uint16_t* scale, uint8_t* zero, int64_t threads) {
  if (!valid_type(type) || bits < 2 || bits > 8) return DFQ_BAD_ARGUMENT;
  const Kernels& run = kernels();
  return guarded([&] {
    over(rows, row_step(rows, width, threads), threads, [&](int64_t begin, int64_t end) {
      run.kv_quantize_rows(x, int(type), width, int(bits), symmetric != 0, clip, packed, scale, zero, begin, end);
    });
  });
}

int dfq_kv_dequantize(const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t rows, int64_t width,
                      int64_t bits, int64_t type, void* out, int64_t threads) {
  if (!valid_type(type) || bits < 2 || bits > 8) return DFQ_BAD_ARGUMENT;
  const Kernels& run = kernels();
  return guarded([&] {
    over(rows, row_step(rows, width, threads), threads, [&](int64_t begin, int64_t end) {
      run.kv_dequantize_rows(packed, scale, zero, width, int(bits), int(type), out, begin, end);
    });
  });
}
