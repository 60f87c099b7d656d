// The instruction set that a unit is compiled for. CMake compiles the unit of a family once per instruction set, with
// the compiler's flags for it and with DFQ_ISA, its name: scalar, avx2, avx512 (x86-64), neon, dotprod, i8mm (64-bit
// ARM).
//
// All code of such a unit lies in namespace dfq::DFQ_ISA and, but for the table that it exports, in an anonymous
// namespace there. The linker keeps one copy of an inline function or template with external linkage: without the
// namespace it could keep the one compiled for AVX-512 and run it everywhere. The anonymous namespace lets the compiler
// inline what is called once.
#pragma once

#ifndef DFQ_ISA
#define DFQ_ISA scalar
#endif

#define DFQ_LEVEL_scalar 0
#define DFQ_LEVEL_avx2 1
#define DFQ_LEVEL_avx512 2
#define DFQ_LEVEL_neon 3
#define DFQ_LEVEL_dotprod 4
#define DFQ_LEVEL_i8mm 5
#define DFQ_PASTE_LEVEL(isa) DFQ_LEVEL_##isa
#define DFQ_LEVEL_OF(isa) DFQ_PASTE_LEVEL(isa)

// What this unit may use, as 0 or 1: newer sets of a processor have what the older ones have.
#define DFQ_HAS_AVX2 (DFQ_LEVEL_OF(DFQ_ISA) == 1 || DFQ_LEVEL_OF(DFQ_ISA) == 2)
#define DFQ_HAS_AVX512 (DFQ_LEVEL_OF(DFQ_ISA) == 2)
#define DFQ_HAS_NEON (DFQ_LEVEL_OF(DFQ_ISA) >= 3)
#define DFQ_HAS_DOTPROD (DFQ_LEVEL_OF(DFQ_ISA) >= 4)
#define DFQ_HAS_I8MM (DFQ_LEVEL_OF(DFQ_ISA) == 5)
