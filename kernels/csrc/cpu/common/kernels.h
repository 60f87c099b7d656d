// The functions of one instruction set: a table of each family. instruction_set.cpp finds out what the processor has
// and holds the choice; everything else asks kernels() and names no instruction set.
#pragma once
#include "attention/attention_kernels.h"
#include "attention/prompt_kernels.h"
#include "canonical/canonical_kernels.h"
#include "dense/dense_kernels.h"
#include "fused_rows/fused_kernels.h"
#include "gemm/gemm_kernels.h"
#include "rows/row_kernels.h"
#include "tile16/tile16_kernels.h"
#include "whole_blocks/block_kernels.h"
#include "whole_blocks/draft_kernels.h"

namespace dfq {

struct Kernels {
  int isa;  // DFQ_SCALAR ...
  const RowKernels& rows;
  const FusedKernels& fused;
  const CanonicalKernels& canonical;
  const Tile16Kernels& tile16;
  const GemmKernels* gemm;  // for more than DECODE_ROWS rows; null: decode serves, DECODE_ROWS at a time
  const AttentionKernels& attention;
  const PromptKernels& prompt;
  const DenseKernels& dense;
  const BlockKernels& block;
  const DraftKernels& draft;
};

const Kernels& kernels();  // of the instruction set in use

}  // namespace dfq
