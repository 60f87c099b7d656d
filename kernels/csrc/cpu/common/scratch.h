// Scratch memory that a thread keeps between calls.
#pragma once
#include <cstdint>

namespace dfq {

// At least `bytes` bytes, 64-byte aligned, kept by the calling thread until it asks for more with the same slot: no
// allocation in a steady state. CALLER: what one call shares with its workers; WORKER: what a chunk of parallel() uses
// (the calling thread runs chunks too, so the two must differ). Ask for megabytes at most. Throws std::bad_alloc.
enum ScratchSlot { SCRATCH_CALLER = 0, SCRATCH_CALLER_SUMS = 1, SCRATCH_WORKER = 2, SCRATCH_SLOTS = 4 };
void* scratch(int slot, int64_t bytes);

}  // namespace dfq
