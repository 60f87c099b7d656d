// dfq_packed: every function of the C interface behind one array of arguments. Its own signature tells how to read them.
#include <cstring>
#include <utility>

#include "dfq_abi.h"

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

int dfq_abi_version() { return 3; }

int dfq_decoder_words(int64_t* linear, int64_t* block, int64_t* cache, int64_t* decoder, int64_t) {
  *linear = sizeof(dfq_linear) / 8, *block = sizeof(dfq_block) / 8;
  *cache = sizeof(dfq_cache) / 8, *decoder = sizeof(dfq_decoder) / 8;
  return DFQ_OK;
}

int dfq_draft_words(int64_t* linear, int64_t* block, int64_t* draft, int64_t* buffer, int64_t) {
  *linear = sizeof(dfq_draft_linear) / 8, *block = sizeof(dfq_draft_block) / 8;
  *draft = sizeof(dfq_draft) / 8, *buffer = sizeof(dfq_draft_buffer) / 8;
  return DFQ_OK;
}
