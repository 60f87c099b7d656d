// The functions of one instruction set: a table of each family. isa.cpp finds out what the processor has and holds the
// choice; everything else asks family() and names no instruction set.
#pragma once
#include "attention.h"
#include "decoder.h"
#include "draft.h"
#include "fused.h"
#include "gemm.h"
#include "kernels.h"
#include "tiled.h"

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
