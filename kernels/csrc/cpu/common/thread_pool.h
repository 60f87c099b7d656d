// Parallel regions, on torch's OpenMP threads or on a pool of our own (thread_pool.cpp).
#pragma once
#include <cstdint>

namespace dfq {

// Calls body(context, chunk) for chunk = 0 .. chunks - 1 on up to `threads` threads. Which thread takes which chunk
// never changes a result: chunks write disjoint outputs and no sum crosses a chunk.
void parallel_for(int64_t chunks, int64_t threads, void (*body)(void*, int64_t), void* context);

// Calls body(context, index, size) for index = 0 .. size - 1, all at the same time on `size` threads: they may wait for
// one another. `size` is `threads`, or less where there are not so many.
void parallel_region(int64_t threads, void (*body)(void*, int64_t, int64_t), void* context);

}  // namespace dfq
