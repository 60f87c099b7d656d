// Torch's own threads, where its OpenMP library has been found.
#pragma once
#include <cstdint>

namespace dfq {

// Calls body(context, index, size) on `threads` threads of torch's OpenMP pool, or fewer where it has fewer, all at the
// same time. False where there is none: nothing was called.
bool on_openmp(int64_t threads, void (*body)(void*, int64_t, int64_t), void* context);

}  // namespace dfq
