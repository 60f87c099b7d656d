// The C interface of work on rows: argument checks, memory, partition over threads.
#include <algorithm>

#include "common/buffer.h"
#include "common/kernels.h"
#include "common/parallel.h"
#include "dfq_abi.h"

using namespace dfq;

int dfq_pack(const uint8_t* codes, int64_t n, int64_t k, int64_t bits, uint8_t* packed, int64_t threads) {
  if (!valid_bits(bits)) return DFQ_BAD_ARGUMENT;
  const RowKernels& run = kernels().rows;
  return guarded([&] {
    over_rows(n, k, threads, [&](int64_t a, int64_t b) { run.pack_rows(codes, k, int(bits), packed, a, b); });
  });
}

int dfq_unpack(const uint8_t* packed, int64_t n, int64_t k, int64_t bits, uint8_t* codes, int64_t threads) {
  if (!valid_bits(bits)) return DFQ_BAD_ARGUMENT;
  const RowKernels& run = kernels().rows;
  return guarded([&] {
    over_rows(n, k, threads, [&](int64_t a, int64_t b) { run.unpack_rows(packed, k, int(bits), codes, a, b); });
  });
}

int dfq_quantize_per_token(const void* x, int64_t type, int64_t m, int64_t k, int64_t bits, int64_t symmetric,
                           float clip, int8_t* codes, float* scale, int32_t* zero, int64_t threads) {
  if (!valid_type(type) || !valid_bits(bits)) return DFQ_BAD_ARGUMENT;
  const RowKernels& run = kernels().rows;
  return guarded([&] {
    over_rows(m, k, threads, [&](int64_t begin, int64_t end) {
      run.quantize_rows(x, int(type), k, int(bits), symmetric != 0, clip, codes, scale, zero, begin, end);
    });
  });
}

int dfq_hadamard(const void* x, int64_t type, int64_t rows, int64_t block, const float* base, int64_t order, void* out,
                 int64_t threads) {
  const int64_t size = order > 0 ? block / order : 0;
  if (!valid_type(type) || size < 1 || size * order != block || (size & (size - 1))) return DFQ_BAD_ARGUMENT;
  const RowKernels& run = kernels().rows;
  return guarded([&] {
    auto base_t = buffer<float>(order * order);
    for (int64_t i = 0; i < order; ++i) {
      for (int64_t j = 0; j < order; ++j) base_t[size_t(j * order + i)] = base[i * order + j];
    }
    over_rows(rows, block, threads, [&](int64_t begin, int64_t end) {
      auto work = buffer<float>(2 * block);
      run.hadamard_rows(x, int(type), block, base_t.get(), order, out, work.get(), begin, end);
    });
  });
}

int dfq_kv_quantize(const void* x, int64_t type, int64_t rows, int64_t width, int64_t bits, int64_t symmetric, float clip,
                    uint8_t* packed, uint16_t* scale, uint8_t* zero, int64_t threads) {
  if (!valid_type(type) || !valid_bits(bits)) return DFQ_BAD_ARGUMENT;
  const RowKernels& run = kernels().rows;
  return guarded([&] {
    over_rows(rows, width, threads, [&](int64_t begin, int64_t end) {
      run.kv_quantize_rows(x, int(type), width, int(bits), symmetric != 0, clip, packed, scale, zero, begin, end);
    });
  });
}

int dfq_kv_dequantize(const uint8_t* packed, const uint16_t* scale, const uint8_t* zero, int64_t rows, int64_t width,
                      int64_t bits, int64_t type, void* out, int64_t threads) {
  if (!valid_type(type) || !valid_bits(bits)) return DFQ_BAD_ARGUMENT;
  const RowKernels& run = kernels().rows;
  return guarded([&] {
    over_rows(rows, width, threads, [&](int64_t begin, int64_t end) {
      run.kv_dequantize_rows(packed, scale, zero, width, int(bits), int(type), out, begin, end);
    });
  });
}
