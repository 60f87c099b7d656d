// A block of query rows of one kv head over the positions that it sees. Format provides the arithmetic (prompt_float32.h,
// prompt_bfloat16.h):
//   scores<LINES>   s[line][position] = q . k * scale of the key, for whole panels of 16 positions
//   weights<...>    a running softmax in base 2, and the weights times the scales of the values
//   mix<LINES>      sums of values
#pragma once
#include <cstdint>
#include <cstring>

#include "attention/prompt_kernels.h"
#include "attention/prompt_panels.h"
#include "attention/scratch_layout.h"
#include "common/convert.h"
#include "common/height.h"
#include "common/integers.h"
#include "common/isa.h"
#include "common/lanes.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int PROMPT_HEIGHT = 6;  // lines that share one pass over a panel, at most

// What a line sees of a tile, as positions of the tile: low <= t < high.
struct Sight {
  int64_t low, high;
};

struct PromptLine {
  float peak;     // largest score so far
  float rescale;  // of the sums so far
};

template <class Format>
struct PromptWorkspace {
  typename Format::Value *queries, *weights;  // [lines][steps][DEPTH]; [HEIGHT][PROMPT_TILE]
  float *scores, *sums, *totals;              // [HEIGHT][PROMPT_TILE]; [lines][value_panels][16]; [lines][16]
  PromptLine* lines;
};

template <class Format>
PromptWorkspace<Format> lay_out_prompt(const PromptCall& call, int64_t lines, ScratchLayout& memory) {
  using Value = typename Format::Value;
  PromptWorkspace<Format> to;
  to.queries = memory.take<Value>(lines * key_steps<Format>(call) * Format::DEPTH);
  to.weights = memory.take<Value>(PROMPT_HEIGHT * PROMPT_TILE);
  to.scores = memory.take<float>(PROMPT_HEIGHT * PROMPT_TILE);
  to.sums = memory.take<float>(lines * value_panels(call) * LANES);
  to.totals = memory.take<float>(lines * LANES);
  to.lines = memory.take<PromptLine>(lines);
  return to;
}

template <class Format>
int64_t prompt_memory(const PromptCall& call, int64_t rows) {
  ScratchLayout memory{nullptr};
  lay_out_prompt<Format>(call, rows * call.group, memory);
  return memory.size;
}

template <class Format>
class PromptBlock {
 public:
  PromptBlock(const PromptCall& call, int64_t pair, int64_t begin, int64_t end, void* memory)
      : call_(call), begin_(begin), lines_((end - begin) * call.group), past_(call.length - call.rows),
        steps_(key_steps<Format>(call)), panels_(value_panels(call)),
        first_line_(((call.first_pair + pair) / call.kv_heads * call.rows + begin) * call.kv_heads +
                    (call.first_pair + pair) % call.kv_heads) {
    ScratchLayout layout{static_cast<char*>(memory)};
    my_ = lay_out_prompt<Format>(call, lines_, layout);
    keys_ = reinterpret_cast<const Value*>(call.keys + pair * panel_bytes_of_keys<Format>(call));
    values_ = reinterpret_cast<const Value*>(call.values + pair * panel_bytes_of_values<Format>(call));
    key_scale_ = call.key_scale + pair * call.padded, value_scale_ = call.value_scale + pair * call.padded;
  }

  void run() {
    for (int64_t line = 0; line < lines_; ++line) {
      float row[MAX_HEAD_DIM + 1];
      load_floats(call_.query, call_.type, element_of(line) * call_.k.dim, call_.k.dim, row);
      for (int64_t d = call_.k.dim; d < steps_ * Format::DEPTH; ++d) row[d] = 0.0f;
      Value* const to = my_.queries + line * steps_ * Format::DEPTH;
      for (int64_t d = 0; d < steps_ * Format::DEPTH; ++d) to[d] = Format::value(row[d]);
      my_.lines[line] = {MINUS_INFINITY, 0.0f};
    }
    std::memset(my_.sums, 0, size_t(lines_ * panels_ * LANES) * 4);
    std::memset(my_.totals, 0, size_t(lines_ * LANES) * 4);
    const int64_t last = position_of(lines_ - 1);
    for (int64_t tile = first_of(position_of(0)) / PROMPT_TILE * PROMPT_TILE; tile <= last; tile += PROMPT_TILE) {
      for (int64_t line = 0; line < lines_; line += PROMPT_HEIGHT) {
        with_height(minimum(PROMPT_HEIGHT, lines_ - line), [&](auto height) { step(height, line, tile); });
      }
    }
    for (int64_t line = 0; line < lines_; ++line) finish(line);
  }

 private:
  using Value = typename Format::Value;

  int64_t position_of(int64_t line) const { return past_ + begin_ + line / call_.group; }
  int64_t first_of(int64_t position) const {
    return call_.window ? maximum(0, position + 1 - call_.window) : 0;
  }
  // the line's place among all heads of all rows
  int64_t element_of(int64_t line) const {
    return (first_line_ + line / call_.group * call_.kv_heads) * call_.group + line % call_.group;
  }
  static int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }

  template <int LINES>
  void step(Height<LINES>, int64_t line, int64_t tile) {
    const int64_t from = position_of(line), last = position_of(line + LINES - 1);
    if (tile > last || tile + PROMPT_TILE <= first_of(from)) return;
    const bool masked = tile + PROMPT_TILE > from + 1 || tile < first_of(last);
    const int64_t vectors = minimum(PROMPT_TILE / LANES, ceil_div(last + 1 - tile, Format::PANELS * LANES) * Format::PANELS);
    Format::template scores<LINES>(my_.queries + line * steps_ * Format::DEPTH, steps_,
                                   keys_ + tile * steps_ * Format::DEPTH, vectors, key_scale_ + tile, my_.scores);
    Sight sights[LINES];
    for (int i = 0; masked && i < LINES; ++i) {
      const int64_t position = position_of(line + i);
      sights[i] = {maximum(0, first_of(position) - tile), minimum(PROMPT_TILE, position + 1 - tile)};
    }
    bool rescaled = false;
    for (int i = 0; i < LINES; ++i) {
      float* const scores = my_.scores + i * PROMPT_TILE;
      float* const totals = my_.totals + (line + i) * LANES;
      Value* const to = my_.weights + i * PROMPT_TILE;
      PromptLine& state = my_.lines[line + i];
      if (masked) Format::template weights<true>(scores, vectors, value_scale_ + tile, sights[i], state, totals, to);
      else Format::template weights<false>(scores, vectors, value_scale_ + tile, {}, state, totals, to);
      rescaled |= state.rescale != 1.0f;
    }
    Format::template mix<LINES>(my_.weights, values_ + tile * LANES, vectors * LANES / Format::DEPTH, panels_,
                                call_.padded * LANES, my_.lines + line, rescaled, my_.sums + line * panels_ * LANES);
  }

  // A line that sees nothing (there is none) would be zero.
  void finish(int64_t line) {
    const float total = reduce_sum(my_.totals + line * LANES), divisor = total == 0.0f ? 1.0f : total;
    float* const sums = my_.sums + line * panels_ * LANES;
    for (int64_t d = 0; d < call_.v.dim; ++d) sums[d] /= divisor;
    store_floats(sums, call_.v.dim, call_.type, call_.out, element_of(line) * call_.v.dim);
  }

  const PromptCall& call_;
  const int64_t begin_, lines_, past_, steps_, panels_, first_line_;
  PromptWorkspace<Format> my_;
  const Value *keys_, *values_;
  const float *key_scale_, *value_scale_;
};

template <class Format>
void attend_block(const PromptCall& call, int64_t pair, int64_t begin, int64_t end, void* memory) {
  PromptBlock<Format>(call, pair, begin, end, memory).run();
}

}  // namespace
}  // namespace dfq::DFQ_ISA
