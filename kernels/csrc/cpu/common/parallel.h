// What every part of the C interface uses: chunks of work on the thread pool, exceptions stopped at the border. For the
// units that are compiled for the plain processor alone.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>

#include "common/integers.h"
#include "common/thread_pool.h"
#include "dfq_abi.h"

namespace dfq {
namespace {

constexpr int64_t SMALL = 1 << 16;  // elements below which waking a thread costs more than it saves (about 20 us)

// Runs function(i) for i = 0 .. count - 1 on the pool.
template <typename Function>
void parallel_chunks(int64_t count, int64_t threads, Function function) {
  struct Context {
    Function* function;
    std::atomic<bool> failed{false};
  } context{&function};
  const auto body = [](void* raw, int64_t i) {
    Context& c = *static_cast<Context*>(raw);
    try {
      (*c.function)(i);
    } catch (...) {
      c.failed = true;  // only allocation throws; no exception may cross a thread or the C interface
    }
  };
  parallel_for(count, threads, body, &context);
  if (context.failed) throw std::bad_alloc();
}

// Runs function(begin, end) over rows of `width` elements: a few chunks per thread, none tiny.
template <typename Function>
void parallel_rows(int64_t rows, int64_t width, int64_t threads, Function function) {
  const int64_t fair = rows / (4 * std::max<int64_t>(threads, 1));
  const int64_t step = std::max<int64_t>({1, SMALL / std::max<int64_t>(width, 1), fair});
  parallel_chunks(ceil_div(rows, step), threads,
                  [&](int64_t i) { function(i * step, std::min(rows, (i + 1) * step)); });
}

template <typename Function>
int returning_status(Function function) {
  try {
    function();
    return DFQ_OK;
  } catch (...) {
    return DFQ_NO_MEMORY;
  }
}

[[maybe_unused]] bool valid_type(int64_t type) { return type >= DFQ_FLOAT32 && type <= DFQ_FLOAT16; }
[[maybe_unused]] bool valid_bits(int64_t bits) { return bits >= 2 && bits <= 8; }

}  // namespace
}  // namespace dfq
