// The functions of one instruction set: a table of each family. isa.cpp finds out what the processor has and holds the
// choice; everything else asks family() and names no instruction set.
#pragma once
#include "attention/attention_kernels.h"
#include "whole_blocks/block_kernels.h"
#include "whole_blocks/draft_kernels.h"
#include "fused_rows/fused_kernels.h"
#include "gemm/gemm_kernels.h"
#include "rows/row_kernels.h"
#include "tile16/tile16_kernels.h"

namespace dfq {

struct Family {
  int isa;  // DFQ_SCALAR ...
  const Kernels& rows;
  const TiledKernels& tiled;
  const GemmKernels* gemm;  // for more than DECODE_ROWS rows; null: decode serves, DECODE_ROWS at a time
  const AttentionKernels& attention;
  const DecoderKernels& decoder;
  const DraftKernels& draft;
  const FusedKernels& fused;
};

const Family& family();  // of the instruction set in use

}  // namespace dfq
