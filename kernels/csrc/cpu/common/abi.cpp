// dfq_packed: every function of the C interface behind one array of arguments. Its own signature tells how to read them.
#include <cstring>
#include <utility>

#include "dfq_decoder.h"
#include "dfq_draft.h"
#include "dfq_kernels.h"
#include "dfq_tiled.h"

namespace dfq {
namespace {

template <typename T>
struct Argument {  // an integer
  static T of(int64_t word) { return T(word); }
};

template <typename T>
struct Argument<T*> {
  static T* of(int64_t word) { return reinterpret_cast<T*>(intptr_t(word)); }
};

template <>
struct Argument<float> {
  static float of(int64_t word) {
    double value;
    std::memcpy(&value, &word, sizeof value);
    return float(value);
  }
};

template <typename... T, size_t... I>
int spread(int (*function)(T...), const int64_t* words, std::index_sequence<I...>) {
  return function(Argument<T>::of(words[I])...);
}

template <typename... T>
int invoke(int (*function)(T...), const void* arguments) {
  int64_t words[sizeof...(T)];
  std::memcpy(words, arguments, sizeof words);  // which need not be aligned
  return spread(function, words, std::index_sequence_for<T...>());
}

struct Entry {
  const char* name;
  dfq_packed_call call;
};

#define DFQ_ENTRY(function) {#function, [](const void* arguments) { return invoke(function, arguments); }}

const Entry ENTRIES[] = {
    DFQ_ENTRY(dfq_pack),
    DFQ_ENTRY(dfq_unpack),
    DFQ_ENTRY(dfq_dequantize),
    DFQ_ENTRY(dfq_quantize_per_token),
    DFQ_ENTRY(dfq_hadamard),
    DFQ_ENTRY(dfq_w4a16_mm),
    DFQ_ENTRY(dfq_w4a8_mm),
    DFQ_ENTRY(dfq_kv_quantize),
    DFQ_ENTRY(dfq_kv_dequantize),
    DFQ_ENTRY(dfq_prepack),
    DFQ_ENTRY(dfq_unprepack),
    DFQ_ENTRY(dfq_tiled_w4a16),
    DFQ_ENTRY(dfq_tiled_w4a8),
    DFQ_ENTRY(dfq_decode),
    DFQ_ENTRY(dfq_decode_tree),
    DFQ_ENTRY(dfq_decoder_words),
    DFQ_ENTRY(dfq_prefill_before),
    DFQ_ENTRY(dfq_prefill_after),
    DFQ_ENTRY(dfq_prefill_norm),
    DFQ_ENTRY(dfq_draft_pass),
    DFQ_ENTRY(dfq_draft_words),
    DFQ_ENTRY(dfq_dense),
    DFQ_ENTRY(dfq_hadamard_quantize),
    DFQ_ENTRY(dfq_rmsnorm_quantize),
    DFQ_ENTRY(dfq_silu_mul_hadamard_quantize),
    DFQ_ENTRY(dfq_kv_append),
    DFQ_ENTRY(dfq_kv_attention),
};

}  // namespace
}  // namespace dfq

dfq_packed_call dfq_packed(const char* name) {
  for (const dfq::Entry& entry : dfq::ENTRIES) {
    if (!std::strcmp(entry.name, name)) return entry.call;
  }
  return nullptr;
}
