// Threads that go through one piece of work together: their barrier, the part of each, the memory they share. For the
// units that run whole blocks (decoder.cpp, draft.cpp), which are compiled for the plain processor.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>

#include "common/arena.h"
#include "common/integers.h"
#include "common/scratch.h"
#include "common/thread_pool.h"

namespace dfq {
namespace {

// They spin, since the next piece of work is microseconds away; where the machine is busy with something else, they let
// it run.
class Barrier {
 public:
  void wait(int64_t size) {  // threads of the region
    if (size == 1) return;
    const int64_t generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins) {
      if (spins < 4096) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<int64_t> generation_{0};
};

struct Span {
  int64_t begin, end;
};

// Part `index` of `size` of `count` things.
Span partition(int64_t count, int64_t index, int64_t size) {
  return {count * index / size, count * (index + 1) / size};
}

// Worker(plan, its own memory, index, size).run() on every thread: what they share is laid out once, behind it lies
// what each has for itself.
template <typename Worker, typename Plan>
void run_workers(Plan& plan, int64_t threads) {
  const int64_t shared = ceil_div(plan.shared_bytes(), 64) * 64, own = ceil_div(plan.private_bytes(), 64) * 64;
  char* const memory = static_cast<char*>(scratch(SCRATCH_CALLER, shared + threads * own));
  plan.lay_out_shared({memory});
  struct Context {
    Plan* plan;
    char* memory;
    int64_t own;
  } context{&plan, memory + shared, own};
  parallel_region(threads, [](void* raw, int64_t index, int64_t size) {
    Context& c = *static_cast<Context*>(raw);
    Worker(*c.plan, c.plan->lay_out_private({c.memory + index * c.own}), index, size).run();
  }, &context);
}

}  // namespace
}  // namespace dfq
