// Attention of many rows, once per instruction set.
#include "attention/prompt_kernels.h"

#include "attention/prompt_attend.h"
#include "attention/prompt_float32.h"
#include "attention/prompt_panels.h"
#include "common/isa.h"
#include "dfq_abi.h"
#if DFQ_HAS_AVX512
#include "attention/prompt_bfloat16.h"
#endif

namespace dfq::DFQ_ISA {
namespace {

// function(Format()) for the format that serves the type of a call
template <typename Function>
auto in_format(const PromptCall& call, Function function) {
#if DFQ_HAS_AVX512
  if (call.type == DFQ_BFLOAT16) return function(PromptBfloat16());
#endif
  (void)call;
  return function(PromptFloat32());
}

int64_t key_bytes(const PromptCall& call) {
  return in_format(call, [&](auto format) { return panel_bytes_of_keys<decltype(format)>(call); });
}

int64_t value_bytes(const PromptCall& call) {
  return in_format(call, [&](auto format) { return panel_bytes_of_values<decltype(format)>(call); });
}

int64_t memory(const PromptCall& call, int64_t rows) {
  return in_format(call, [&](auto format) { return prompt_memory<decltype(format)>(call, rows); });
}

void fill(const PromptCall& call, int64_t pair, int64_t begin, int64_t end) {
  in_format(call, [&](auto format) { fill_panels<decltype(format)>(call, pair, begin, end); });
}

void attend(const PromptCall& call, int64_t pair, int64_t begin, int64_t end, void* memory) {
  in_format(call, [&](auto format) { attend_block<decltype(format)>(call, pair, begin, end, memory); });
}

}  // namespace

const PromptKernels prompt_table = {key_bytes, value_bytes, memory, fill, attend};

}  // namespace dfq::DFQ_ISA
