// dfq_draft_pass: all blocks of a draft in one parallel region, as decoder.cpp does for a target. Threads wait where
// one needs what another computed, six times a block; residual and norms are computed by every thread for itself.
#include <algorithm>

#include "common/parallel.h"
#include "common/limits.h"
#include "common/parallel_region.h"
#include "dfq_abi.h"
#include "tile16/tile16_kernels.h"
#include "whole_blocks/draft_call.h"
#include "whole_blocks/draft_worker.h"

namespace dfq {
namespace {

bool valid(const dfq_draft_linear& l, int64_t n, int64_t k) {
  if (!l.data || l.n != n || l.k != k) return false;
  if (l.kind == DFQ_TILES) return l.scale && (l.group <= 0 || l.group >= k || l.group % TILE16_DEPTH == 0);
  return l.kind == DFQ_FLOAT32 || l.kind == DFQ_BFLOAT16 || (l.kind == DFQ_CODES8 && l.scale);
}

bool valid(const dfq_draft_pass_args& s) {
  const dfq_draft& m = *s.draft;
  const int64_t q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
  if (m.dtype != DFQ_FLOAT32 && m.dtype != DFQ_BFLOAT16) return false;
  if (m.layers < 1 || m.kv_heads < 1 || m.heads % m.kv_heads) return false;
  if (m.head_dim < 2 || m.head_dim > MAX_HEAD_DIM || m.head_dim % 2) return false;
  if (s.rows < 1 || s.rows > DECODE_ROWS || s.news < 0 || s.news > DECODE_ROWS) return false;
  if (s.verified < 0 || s.verified > s.at + s.rows || s.at < 0 || s.features < 0 || s.drafted < 0) return false;
  const bool pairs = any_block(m, [](const auto& b) { return b.side_norm != nullptr; });
  const bool joins = any_block(m, [](const auto& b) { return b.joins != 0; });
  if ((pairs && joins) || ((pairs || joins) && !s.stream)) return false;
  for (int64_t i = 0; i < m.layers; ++i) {
    const dfq_draft_block& b = m.blocks[i];
    if (!valid(b.gate, m.mlp, m.hidden) || !valid(b.up, m.mlp, m.hidden) || !valid(b.down, m.hidden, m.mlp))
      return false;
    if (!b.q.data) continue;
    const int64_t read = b.side_norm ? 2 * m.hidden : m.hidden;
    if (b.cross ? b.side_norm : b.feature_norm) return false;
    if (!valid(b.q, q, read) || !valid(b.k, kv, read) || !valid(b.v, kv, read)) return false;
    if (!valid(b.o, m.hidden, q)) return false;
    const int64_t end = b.cross ? std::max(s.cross_at + s.news, 1 + s.features + s.drafted) : s.at + s.rows;
    if (end > s.buffers[i].capacity || (b.cross && s.cross_at < 1)) return false;
  }
  return true;
}

}  // namespace
}  // namespace dfq

using namespace dfq;

int dfq_draft_pass(const dfq_draft_pass_args* args) {
  if (!valid(*args)) return DFQ_BAD_ARGUMENT;
  return returning_status([&] {
    DraftCall call(*args);
    run_workers<DraftWorker>(call, args->threads);
  });
}
