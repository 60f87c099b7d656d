// Which instruction sets this library has, which of them this processor can run, and the one in use. Compiled for the
// plain processor: what it says comes before any other unit's code runs.
#include <atomic>

#include "dfq_abi.h"
#include "common/kernels.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

// The tables of every instruction set, whose units are compiled apart (isa.h).
#define DFQ_DECLARE_TABLES(isa)              \
  namespace isa {                            \
  extern const RowKernels row_table;         \
  extern const FusedKernels fused_table;     \
  extern const CanonicalKernels canonical_table; \
  extern const Tile16Kernels tile16_table;    \
  extern const GemmKernels gemm_table;       \
  extern const AttentionKernels attention_table; \
  extern const PromptKernels prompt_table; \
  extern const DenseKernels dense_table;     \
  extern const BlockKernels block_table;     \
  extern const DraftKernels draft_table;     \
  }

namespace dfq {

DFQ_DECLARE_TABLES(avx2)
DFQ_DECLARE_TABLES(avx512)
DFQ_DECLARE_TABLES(neon)
DFQ_DECLARE_TABLES(dotprod)
DFQ_DECLARE_TABLES(i8mm)
namespace avx512 {
extern const decltype(RowKernels::quantize_rows) quantize_rows_entry;
extern const decltype(RowKernels::hadamard_rows) hadamard_rows_entry;
}  // namespace avx512

namespace {

#if defined(DFQ_WITH_AVX2) || defined(DFQ_WITH_AVX512)
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

#ifdef DFQ_WITH_AVX512
// all that Ice Lake has, and the bfloat16 products of Cooper Lake, Sapphire Rapids and Zen 4
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512bf16");
}

RowKernels with_avx512_rows(RowKernels table) {
  table.quantize_rows = avx512::quantize_rows_entry;
  table.hadamard_rows = avx512::hadamard_rows_entry;
  return table;
}

const RowKernels avx512_row_table = with_avx512_rows(avx2::row_table);
#endif

#ifdef __aarch64__
// Bits of AT_HWCAP and AT_HWCAP2 (Linux, asm/hwcap.h; older headers lack the newer ones), names under hw.optional.arm.
// (macOS). Elsewhere only what every such processor has counts.
bool arm_feature([[maybe_unused]] int word, [[maybe_unused]] int bit, [[maybe_unused]] const char* name) {
#if defined(__linux__)
  return ((getauxval(word == 1 ? AT_HWCAP : AT_HWCAP2) >> bit) & 1) != 0;
#elif defined(__APPLE__)
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
#else
  return false;
#endif
}

[[maybe_unused]] bool has_dotprod() { return arm_feature(1, 20, "hw.optional.arm.FEAT_DotProd"); }

[[maybe_unused]] bool has_i8mm() {
  return has_dotprod() && arm_feature(2, 13, "hw.optional.arm.FEAT_I8MM") &&
         arm_feature(2, 14, "hw.optional.arm.FEAT_BF16");
}
#endif

// Weakest first. A set takes over from a weaker one what it would not do better.
struct Choice {
  Kernels kernels;
  bool (*has)();  // null: everywhere

  bool runs() const { return !has || has(); }
};

const Choice CHOICES[] = {
    {{DFQ_SCALAR, scalar::row_table, scalar::fused_table, scalar::canonical_table, scalar::tile16_table, nullptr,
      scalar::attention_table, scalar::prompt_table, scalar::dense_table, scalar::block_table, scalar::draft_table},
     nullptr},
#ifdef DFQ_WITH_AVX2
    {{DFQ_AVX2, avx2::row_table, avx2::fused_table, avx2::canonical_table, avx2::tile16_table, &avx2::gemm_table,
      avx2::attention_table, avx2::prompt_table, avx2::dense_table, avx2::block_table, avx2::draft_table},
     has_avx2},
#endif
#ifdef DFQ_WITH_AVX512
    {{DFQ_AVX512, avx512_row_table, avx512::fused_table, avx2::canonical_table, avx512::tile16_table,
      &avx512::gemm_table, avx512::attention_table, avx512::prompt_table, avx512::dense_table, avx512::block_table,
      avx512::draft_table},
     has_avx512},
#endif
#ifdef DFQ_WITH_NEON
    {{DFQ_NEON, neon::row_table, neon::fused_table, neon::canonical_table, neon::tile16_table, &neon::gemm_table,
      neon::attention_table, neon::prompt_table, neon::dense_table, neon::block_table, neon::draft_table},
     nullptr},
#endif
#ifdef DFQ_WITH_DOTPROD
    {{DFQ_DOTPROD, dotprod::row_table, neon::fused_table, dotprod::canonical_table, dotprod::tile16_table,
      &dotprod::gemm_table, dotprod::attention_table, neon::prompt_table, neon::dense_table, neon::block_table,
      neon::draft_table},
     has_dotprod},
#endif
#ifdef DFQ_WITH_I8MM
    {{DFQ_I8MM, dotprod::row_table, neon::fused_table, dotprod::canonical_table, i8mm::tile16_table, &i8mm::gemm_table,
      dotprod::attention_table, neon::prompt_table, neon::dense_table, neon::block_table, neon::draft_table},
     has_i8mm},
#endif
};

const Kernels* find(int isa) {
  for (const Choice& choice : CHOICES) {
    if (choice.kernels.isa == isa) return choice.runs() ? &choice.kernels : nullptr;
  }
  return nullptr;
}

const Kernels* best() {
  const Kernels* strongest = &CHOICES[0].kernels;
  for (const Choice& choice : CHOICES) {
    if (choice.runs()) strongest = &choice.kernels;
  }
  return strongest;
}

std::atomic<const Kernels*> chosen{best()};

}  // namespace

const Kernels& kernels() { return *chosen.load(std::memory_order_relaxed); }

}  // namespace dfq

using namespace dfq;

int dfq_isa() { return kernels().isa; }
int dfq_isa_supported(int isa) { return find(isa) ? 1 : 0; }

int dfq_set_isa(int isa) {
  const Kernels* const tables = find(isa);
  if (!tables) return DFQ_BAD_ARGUMENT;
  chosen = tables;
  return DFQ_OK;
}
