// Attention over one stretch of positions, the same float arithmetic for every instruction set.
#pragma once
#include <cstdint>
#include <cstring>

#include "attention/attention_kernels.h"
#include "attention/fixed_point.h"
#include "attention/panels.h"
#include "attention/scratch_layout.h"
#include "attention/softmax.h"
#include "attention/tile_rows.h"
#include "attention/visibility.h"
#include "common/integers.h"
#include "common/isa.h"

namespace dfq::DFQ_ISA {
namespace {

inline int64_t partial_size(int64_t dim) { return dim + 2; }
struct Workspace {
  uint8_t *panels, *bytes;
  int32_t* products;
  float *scores, *mask, *sums;
  int8_t* weights;
  LineState* lines;
};

Workspace lay_out_workspace(const AttentionCall& call, ScratchLayout& memory) {
  const int64_t lines = call.rows * call.group, width = call.k.width > call.v.width ? call.k.width : call.v.width;
  Workspace to;
  to.panels = memory.take<uint8_t>(TILE * width);
  to.bytes = memory.take<uint8_t>(call.bits == 4 || call.bits == 8 ? 0 : TILE * width);
  to.products = memory.take<int32_t>(BLOCK * call.parts * (width > TILE ? width : TILE));
  to.scores = memory.take<float>(TILE);
  to.mask = memory.take<float>(call.rows * TILE);
  to.sums = memory.take<float>(lines * call.v.width);
  to.weights = memory.take<int8_t>(lines * call.parts * TILE);
  to.lines = memory.take<LineState>(lines);
  return to;
}

int64_t split_memory(const AttentionCall& call) {
  ScratchLayout memory{nullptr};
  lay_out_workspace(call, memory);
  return memory.size;
}

void attend_split(const AttentionCall& call, int64_t batch, int64_t head, int64_t begin, int64_t end, void* memory,
                    float* partial) {
  ScratchLayout arena{static_cast<char*>(memory)};
  const Workspace my = lay_out_workspace(call, arena);
  const int64_t lines = call.rows * call.group, stride = call.batch * call.kv_heads, parts = call.parts;
  const int64_t first_line = (batch * call.kv_heads + head) * lines;
  for (int64_t line = 0; line < lines; ++line) my.lines[line] = {MINUS_INFINITY, 0.0f, 0.0f, 0.0f, {}, false};
  std::memset(my.sums, 0, size_t(lines * call.v.width) * 4);
  TileScales keys, values;
  bool visible[ATTENTION_ROWS];
  for (int64_t at = begin; at < end; at += TILE) {
    const int64_t count = minimum(TILE, end - at), index = at * stride + batch * call.kv_heads + head;
    const bool masked = !all_visible(call, batch, at, count);
    bool any = !masked;
    for (int64_t row = 0; masked && row < call.rows; ++row) {
      visible[row] = mask_positions(call, batch, row, at, count, my.mask + row * TILE);
      any |= visible[row];
    }
    if (!any) continue;
    unpack_keys(tile_rows(call.k, index, stride, count, call.bits, my.bytes), my.panels);
    load_scales(call.k, index, stride, count, call.bits, keys);
    load_scales(call.v, index, stride, count, call.bits, values);
    for (int64_t line = 0; line < lines; line += BLOCK) {
      const int64_t height = minimum(BLOCK, lines - line);
      multiply(call.digits + (first_line + line) * parts * call.k.width, call.k.width, height * parts, my.panels,
               call.k.width / 4, ceil_div(count, 16), call.k.width / 4, my.products, TILE);
      for (int64_t i = line; i < line + height; ++i) {
        const int64_t row = i / call.group;
        my.lines[i].active = !masked || visible[row];
        if (!my.lines[i].active) continue;
        score_tile(my.products + (i - line) * parts * TILE, call.parts, call.sums + (first_line + i) * parts,
              call.steps[first_line + i], keys, my.scores);
        softmax_tile(my.scores, masked ? my.mask + row * TILE : nullptr, values, call.parts, my.lines[i],
               my.weights + i * parts * TILE);
      }
    }
    unpack_values(tile_rows(call.v, index, stride, count, call.bits, my.bytes), my.panels);
    for (int64_t line = 0; line < lines; line += BLOCK) {
      const int64_t height = minimum(BLOCK, lines - line);
      multiply(my.weights + line * parts * TILE, TILE, height * parts, my.panels, ceil_div(count, 4), call.v.width / 16,
               TILE / 4, my.products, call.v.width);
      for (int64_t i = line; i < line + height; ++i) {
        if (!my.lines[i].active) continue;
        accumulate_values(my.products + (i - line) * parts * call.v.width, call.v.width, call.parts, my.lines[i],
               my.sums + i * call.v.width);
      }
    }
  }
  for (int64_t line = 0; line < lines; ++line, partial += partial_size(call.v.dim)) {
    partial[0] = my.lines[line].peak;
    partial[1] = my.lines[line].total;
    const float* sums = my.sums + line * call.v.width;
    for (int64_t d = 0; d < call.v.dim; ++d) partial[2 + d] = sums[value_slot(d, call.bits)];
  }
}

}  // namespace
}  // namespace dfq::DFQ_ISA
