// Which instruction sets this library has, which of them this processor can run, and the one in use. Compiled for the
// plain processor: what it says comes before any other unit's code runs.
#include <atomic>

#include "dfq_kernels.h"
#include "common/kernel_tables.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace dfq {
namespace {

#if defined(DFQ_HAVE_AVX2) || defined(DFQ_HAVE_AVX512)
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

#ifdef DFQ_HAVE_AVX512
// all that Ice Lake has, and the bfloat16 products of Cooper Lake, Sapphire Rapids and Zen 4
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512bf16");
}

Kernels with_avx512_rows(Kernels table) {
  table.quantize_rows = avx512_quantize_rows;
  table.hadamard_rows = avx512_hadamard_rows;
  return table;
}

const Kernels avx512_kernels = with_avx512_rows(avx2_kernels);
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
  Family family;
  bool (*has)();  // null: everywhere

  bool runs() const { return !has || has(); }
};

const Choice CHOICES[] = {
    {{DFQ_SCALAR, scalar_kernels, scalar_tiled, nullptr, scalar_attention, scalar_decoder, scalar_draft, scalar_fused},
     nullptr},
#ifdef DFQ_HAVE_AVX2
    {{DFQ_AVX2, avx2_kernels, avx2_tiled, &avx2_gemm, avx2_attention, avx2_decoder, avx2_draft, avx2_fused}, has_avx2},
#endif
#ifdef DFQ_HAVE_AVX512
    {{DFQ_AVX512, avx512_kernels, avx512_tiled, &avx512_gemm, avx512_attention, avx512_decoder, avx512_draft,
      avx512_fused},
     has_avx512},
#endif
#ifdef DFQ_HAVE_NEON
    {{DFQ_NEON, neon_kernels, neon_tiled, &neon_gemm, neon_attention, neon_decoder, neon_draft, neon_fused}, nullptr},
#endif
#ifdef DFQ_HAVE_DOTPROD
    {{DFQ_DOTPROD, dotprod_kernels, dotprod_tiled, &dotprod_gemm, dotprod_attention, neon_decoder, neon_draft,
      neon_fused},
     has_dotprod},
#endif
#ifdef DFQ_HAVE_I8MM
    {{DFQ_I8MM, dotprod_kernels, i8mm_tiled, &i8mm_gemm, dotprod_attention, neon_decoder, neon_draft, neon_fused},
     has_i8mm},
#endif
};

const Family* find(int isa) {
  for (const Choice& choice : CHOICES) {
    if (choice.family.isa == isa) return choice.runs() ? &choice.family : nullptr;
  }
  return nullptr;
}

const Family* best() {
  const Family* found = &CHOICES[0].family;
  for (const Choice& choice : CHOICES) {
    if (choice.runs()) found = &choice.family;
  }
  return found;
}

std::atomic<const Family*> chosen{best()};

}  // namespace

const Family& family() { return *chosen.load(std::memory_order_relaxed); }
const Kernels& kernels() { return family().rows; }

}  // namespace dfq

using namespace dfq;

int dfq_isa() { return family().isa; }
int dfq_isa_supported(int isa) { return find(isa) ? 1 : 0; }

int dfq_set_isa(int isa) {
  const Family* const found = find(isa);
  if (!found) return DFQ_BAD_ARGUMENT;
  chosen = found;
  return DFQ_OK;
}
