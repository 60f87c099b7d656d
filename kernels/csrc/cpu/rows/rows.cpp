// The C interface of work on rows: argument checks, memory, partition over threads.
#include <algorithm>

#include "common/buffer.h"
#include "common/kernels.h"
#include "common/parallel.h"
#include "dfq_abi.h"

using namespace dfq;

int dfq_pack(const dfq_pack_args* args) {
  if (!valid_bits(args->bits)) return DFQ_BAD_ARGUMENT;
  const RowKernels& run = kernels().rows;
  return returning_status([&] {
    parallel_rows(args->n, args->k, args->threads,
              [&](int64_t a, int64_t b) { run.pack_rows(args->codes, args->k, int(args->bits), args->packed, a, b); });
  });
}

int dfq_unpack(const dfq_unpack_args* args) {
  if (!valid_bits(args->bits)) return DFQ_BAD_ARGUMENT;
  const RowKernels& run = kernels().rows;
  return returning_status([&] {
    parallel_rows(args->n, args->k, args->threads, [&](int64_t a, int64_t b) {
      run.unpack_rows(args->packed, args->k, int(args->bits), args->codes, a, b);
    });
  });
}

int dfq_quantize_per_token(const dfq_quantize_per_token_args* args) {
  if (!valid_type(args->dtype) || !valid_bits(args->bits)) return DFQ_BAD_ARGUMENT;
  const RowKernels& run = kernels().rows;
  return returning_status([&] {
    parallel_rows(args->m, args->k, args->threads, [&](int64_t begin, int64_t end) {
      run.quantize_rows(args->x, int(args->dtype), args->k, int(args->bits), args->symmetric != 0, float(args->clip),
                        args->codes, args->scale, args->zero, begin, end);
    });
  });
}

int dfq_hadamard(const dfq_hadamard_args* args) {
  const int64_t size = args->order > 0 ? args->block / args->order : 0;
  if (!valid_type(args->dtype) || size < 1 || size * args->order != args->block || (size & (size - 1)))
    return DFQ_BAD_ARGUMENT;
  const RowKernels& run = kernels().rows;
  return returning_status([&] {
    auto base_t = buffer<float>(args->order * args->order);
    for (int64_t i = 0; i < args->order; ++i) {
      for (int64_t j = 0; j < args->order; ++j) base_t[size_t(j * args->order + i)] = args->base[i * args->order + j];
    }
    parallel_rows(args->rows, args->block, args->threads, [&](int64_t begin, int64_t end) {
      auto work = buffer<float>(2 * args->block);
      run.hadamard_rows(args->x, int(args->dtype), args->block, base_t.get(), args->order, args->out, work.get(), begin,
                        end);
    });
  });
}

int dfq_kv_quantize(const dfq_kv_quantize_args* args) {
  if (!valid_type(args->dtype) || !valid_bits(args->bits)) return DFQ_BAD_ARGUMENT;
  const RowKernels& run = kernels().rows;
  return returning_status([&] {
    parallel_rows(args->rows, args->width, args->threads, [&](int64_t begin, int64_t end) {
      run.kv_quantize_rows(args->x, int(args->dtype), args->width, int(args->bits), args->symmetric != 0,
                           float(args->clip), args->packed, args->scale, args->zero, begin, end);
    });
  });
}

int dfq_kv_dequantize(const dfq_kv_dequantize_args* args) {
  if (!valid_type(args->dtype) || !valid_bits(args->bits)) return DFQ_BAD_ARGUMENT;
  const RowKernels& run = kernels().rows;
  return returning_status([&] {
    parallel_rows(args->rows, args->width, args->threads, [&](int64_t begin, int64_t end) {
      run.kv_dequantize_rows(args->packed, args->scale, args->zero, args->width, int(args->bits), int(args->dtype),
                             args->out, begin, end);
    });
  });
}
