// Which positions of a tile a query row sees.
#pragma once
#include <cstdint>

#include "attention/attention_kernels.h"
#include "attention/fixed_point.h"
#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

// hide[t]: 0 where row `row` of sequence `batch` sees position at + t, minus infinity elsewhere. Whether it sees any.
bool mask_positions(const AttentionCall& call, int64_t batch, int64_t row, int64_t at, int64_t count, float* mask) {
  const int64_t past = call.length - call.rows;
  const int64_t first = call.first ? call.first[batch * call.rows + row] : 0;
  const int64_t sink = call.sinks && call.sink_start ? call.sink_start[batch] : 0, exact = sink + call.sinks;
  const uint8_t* tree = nullptr;
  if (call.tree) tree = call.tree + ((call.trees > 1 ? batch : 0) * call.rows + row) * call.rows;
  bool any = false;
  for (int64_t t = 0; t < TILE; ++t) {
    const int64_t position = at + t;
    bool visible_here = t < count && !(position >= sink && position < exact);
    if (visible_here && position < past) visible_here = position >= first;
    else if (visible_here) visible_here = tree ? tree[position - past] != 0 : position - past <= row;
    mask[t] = visible_here ? 0.0f : MINUS_INFINITY;
    any |= visible_here;
  }
  return any;
}

// Every row sees all TILE positions.
bool all_visible(const AttentionCall& call, int64_t batch, int64_t at, int64_t count) {
  if (count < TILE || at + TILE > call.length - call.rows) return false;
  if (call.sinks) {
    const int64_t sink = call.sink_start ? call.sink_start[batch] : 0;
    if (at < sink + call.sinks && sink < at + TILE) return false;
  }
  for (int64_t row = 0; call.first && row < call.rows; ++row) {
    if (call.first[batch * call.rows + row] > at) return false;
  }
  return true;
}

}  // namespace
}  // namespace dfq::DFQ_ISA
