// Integer products with many rows. A piece of the weight stays in L1 while all rows pass. multiply_add unpacks codes in
// registers: that costs next to nothing beside the multiply-adds.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/integers.h"
#include "common/isa.h"
#include "common/unroll.h"
#include "gemm/epilogue.h"
#include "gemm/gemm_kernels.h"
#include "gemm/integer_rows.h"
#include "gemm/multiply_add.h"
#include "gemm/vectors.h"
#include "tile16/tile16_kernels.h"

namespace dfq::DFQ_ISA {
namespace {

constexpr int64_t ROW_VALUES = VECTORS * LANES, BLOCK_VALUES = HEIGHT * ROW_VALUES;
constexpr int64_t WEIGHT_BYTES = 2 * PIECE_GROUPS * ROW_VALUES * 4;

struct Columns {  // of the groups of a piece, [group][ROW_VALUES]
  int32_t* pairs;  // 16-bit (zero, sum of codes - zero * columns)
  float* scale;
};

// Sum of codes - zero * columns, what a zero point of activations is multiplied with.
inline Ints code_sums(const GemmCall& call, int64_t group, int64_t column, Ints zero) {
  const Tile16Weight& w = *call.weight;
  if (!call.x_zero) return same(0);
  return minus(ints_at(w.sums + group * w.n16 + column), product(zero, same(int32_t(columns_of(w, group)))));
}

template <int WIDTH>
void load_columns(const GemmCall& call, int64_t column, int64_t begin, int64_t end, const Columns& to) {
  const Tile16Weight& w = *call.weight;
  for (int64_t group = begin; group < end; ++group) {
    for (int64_t t = 0; t < WIDTH; ++t) {
      const int64_t from = column + t * LANES, at = (group - begin) * ROW_VALUES + t * LANES;
      const Ints zero = zeros_of(w, group, from);
      put(to.pairs + at, pair(zero, code_sums(call, group, from, zero)));
      put(to.scale + at, widen(w.scale + group * w.n16 + from));
    }
  }
}

// Whole groups of at most NARROW_GROUP columns. The zero points of both sides are one multiply-add of 16-bit pairs:
// sums start from (zero, code sums) * (-sum(q), -x_zero).
template <int WIDTH>
void narrow_groups(const GemmCall& call, int64_t block, int64_t tile, int64_t begin, int64_t end,
                   const Columns& columns, float* totals) {
  const Tile16Weight& w = *call.weight;
  const Piece piece = piece_of(call, begin * w.group / TILE16_DEPTH);
  const int64_t stride = w.blocks * TILE16_BYTES;
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * w.group / TILE16_DEPTH, count = end_of(w, group) - first;
    const int32_t* pairs = columns.pairs + (group - begin) * ROW_VALUES;
    const float* scale = columns.scale + (group - begin) * ROW_VALUES;
    const int32_t* corrections = call.sums + (block * w.groups + group) * HEIGHT;
    Ints sums[HEIGHT * WIDTH];
    unrolled<HEIGHT>(DFQ_EACH(r) {
      const Ints value = same(corrections[r]);
      unrolled<WIDTH>(DFQ_EACH(t) { sums[r * WIDTH + t] = pair_product(ints_at(pairs + t * LANES), value); });
    });
    multiply_add<WIDTH>(sums, integer_rows(call, block, piece, first), w.tiles + tile * stride + first * TILE16_BYTES,
                        stride, count);
    unrolled<WIDTH>(DFQ_EACH(t) {
      const Floats factor = floats_at(scale + t * LANES);
      unrolled<HEIGHT>(DFQ_EACH(r) {
        float* total = totals + r * ROW_VALUES + t * LANES;
        put(total, plus(floats_at(total), product(to_floats(sums[r * WIDTH + t]), factor)));
      });
    });
    asm volatile("" ::: "memory");  // totals stay where they are: gcc would keep them in registers that there are not
  }
}

// A piece of one group.
template <int WIDTH>
void wide_piece(const GemmCall& call, int64_t block, int64_t tile, const Piece& piece, bool fresh, int32_t* partial) {
  const int64_t stride = call.weight->blocks * TILE16_BYTES;
  Ints sums[HEIGHT * WIDTH];
  unrolled<HEIGHT>(DFQ_EACH(r) {
    unrolled<WIDTH>(DFQ_EACH(t) {
      sums[r * WIDTH + t] = fresh ? same(0) : ints_at(partial + r * ROW_VALUES + t * LANES);
    });
  });
  multiply_add<WIDTH>(sums, integer_rows(call, block, piece, piece.at),
                      call.weight->tiles + tile * stride + piece.at * TILE16_BYTES, stride, piece.stop - piece.at);
  unrolled<HEIGHT>(DFQ_EACH(r) {
    unrolled<WIDTH>(DFQ_EACH(t) { put(partial + r * ROW_VALUES + t * LANES, sums[r * WIDTH + t]); });
  });
}

// totals += float(exact) * scale; exact modulo 2^32, where it fits.
template <int WIDTH>
void end_group(const GemmCall& call, int64_t block, int64_t column, int64_t group, const int32_t* sums, float* totals) {
  const Tile16Weight& w = *call.weight;
  const int32_t* q_sums = call.sums + (block * w.groups + group) * HEIGHT;
  const int64_t rows = minimum(HEIGHT, call.m - block * HEIGHT);
  for (int64_t t = 0; t < WIDTH; ++t) {
    const int64_t from = column + t * LANES;
    const Ints zero = zeros_of(w, group, from), codes = code_sums(call, group, from, zero);
    const Floats scale = widen(w.scale + group * w.n16 + from);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = r * ROW_VALUES + t * LANES;
      Ints exact = minus(ints_at(sums + at), product(zero, same(q_sums[r])));
      if (call.x_zero) exact = minus(exact, product(codes, same(call.x_zero[block * HEIGHT + r])));
      const Floats before = group == 0 ? to_floats(same(0)) : floats_at(totals + at);
      put(totals + at, plus(before, product(to_floats(exact), scale)));
    }
  }
}

#if DFQ_HAS_AVX512
// end_group and finish at once, where a weight has one group.
template <int WIDTH>
void end_of_row(const GemmCall& call, int64_t block, int64_t column, const int32_t* sums) {
  const Tile16Weight& w = *call.weight;
  const int64_t row = block * HEIGHT, rows = minimum(HEIGHT, call.m - row);
  const int32_t* const q_sums = call.sums + row;
  for (int64_t t = 0; t < WIDTH; ++t, column += LANES, sums += LANES) {
    const Ints zero = zeros_of(w, 0, column), codes = code_sums(call, 0, column, zero);
    const Floats scale = widen(w.scale + column);
    const OutputColumn to = output_column(call, column);
    for (int64_t r = 0; r < rows; ++r) {
      Ints exact = minus(ints_at(sums + r * ROW_VALUES), product(zero, same(q_sums[r])));
      if (call.x_zero) exact = minus(exact, product(codes, same(call.x_zero[row + r])));
      put_output(call, to, row + r, plus(to_floats(same(0)), product(to_floats(exact), scale)));
    }
  }
}
#endif

// Blocks begin .. end - 1 times WIDTH vectors of columns, from the first column of a tile on.
template <int WIDTH>
void integer_columns(const GemmCall& call, int64_t tile, int64_t begin, int64_t end, float* work) {
  const Tile16Weight& w = *call.weight;
  const int64_t column = tile * TILE16_ROWS, size = (end - begin) * BLOCK_VALUES;
  int32_t* partial = reinterpret_cast<int32_t*>(work + size);
  if (call.narrow) {
    int32_t* pairs = partial + size;
    const Columns columns = {pairs, reinterpret_cast<float*>(pairs + PIECE_GROUPS * ROW_VALUES)};
    const int64_t step = groups_of_piece(w);
    for (int64_t group = 0; group < w.groups; group += step) {
      const int64_t stop = minimum(w.groups, group + step);
      load_columns<WIDTH>(call, column, group, stop, columns);
      for (int64_t block = begin; block < end; ++block) {
        float* totals = work + (block - begin) * BLOCK_VALUES;
        if (group == 0) std::memset(totals, 0, BLOCK_VALUES * 4);
        narrow_groups<WIDTH>(call, block, tile, group, stop, columns, totals);
        if (stop == w.groups) finish(call, block, column, WIDTH, totals);
      }
    }
    return;
  }
  for (int64_t group = 0; group < w.groups; ++group) {
    const int64_t start = group * w.group / TILE16_DEPTH, stop = end_of(w, group);
    for (int64_t at = start; at < stop;) {
      const Piece piece = piece_of(call, at);
      for (int64_t block = begin; block < end; ++block) {
        float* totals = work + (block - begin) * BLOCK_VALUES;
        int32_t* sums = partial + (block - begin) * BLOCK_VALUES;
        wide_piece<WIDTH>(call, block, tile, piece, at == start, sums);
        if (piece.stop < stop) continue;
#if DFQ_HAS_AVX512
        if (w.groups == 1) {
          end_of_row<WIDTH>(call, block, column, sums);
          continue;
        }
#endif
        end_group<WIDTH>(call, block, column, group, sums, totals);
        if (group + 1 == w.groups) finish(call, block, column, WIDTH, totals);
      }
      at = piece.stop;
    }
  }
}

// tiles first .. last - 1 times blocks begin .. end - 1
#if DFQ_HAS_AVX512
void multiply_integer(const GemmCall& call, int64_t first, int64_t last, int64_t begin, int64_t end, void* work) {
  float* memory = static_cast<float*>(work);
  switch (last - first) {
    case 1: return integer_columns<1>(call, first, begin, end, memory);
    case 2: return integer_columns<2>(call, first, begin, end, memory);
    case 3: return integer_columns<3>(call, first, begin, end, memory);
    default: return integer_columns<4>(call, first, begin, end, memory);
  }
}
#else
void multiply_integer(const GemmCall& call, int64_t first, int64_t last, int64_t begin, int64_t end, void* work) {
  for (; first < last; ++first) integer_columns<VECTORS>(call, first, begin, end, static_cast<float*>(work));
}
#endif

// totals, sums of one group that is longer than a piece, what a piece of the weight becomes
int64_t work_bytes(int64_t blocks) { return 2 * blocks * BLOCK_VALUES * 4 + WEIGHT_BYTES; }

}  // namespace
}  // namespace dfq::DFQ_ISA
