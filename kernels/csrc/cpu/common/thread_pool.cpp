// Parallel regions: on torch's OpenMP threads where they were found (openmp.cpp), else on a small persistent pool,
// whose workers sleep on a condition variable between calls. A forked child starts a pool of its own.
#include "common/thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "common/openmp.h"

namespace dfq {
namespace {

struct Pool {
  std::mutex entry;  // one parallel region at a time
  std::mutex lock;
  std::condition_variable wake, done;
  int64_t workers = 0, generation = 0, wanted = 0, running = 0;
  void (*body)(void*, int64_t) = nullptr;
  void* context = nullptr;
  int64_t chunks = 0;
  std::atomic<int64_t> next{0};

  void drain() {
    for (int64_t chunk = next++; chunk < chunks; chunk = next++) body(context, chunk);
  }

  void work(int64_t number, int64_t known) {
    for (;;) {
      {
        std::unique_lock<std::mutex> held(lock);
        wake.wait(held, [&] { return generation != known; });
        known = generation;
        if (number >= wanted) continue;
      }
      drain();
      std::lock_guard<std::mutex> held(lock);
      if (--running == 0) done.notify_one();
    }
  }

  // How many of `threads` threads there are, the caller included; starts them. The lock is held.
  int64_t recruit(int64_t threads) {
    try {
      while (workers < threads - 1) {
        std::thread([this, number = workers, known = generation] { work(number, known); }).detach();
        ++workers;
      }
    } catch (const std::system_error&) {  // no more threads to be had: go on with those there are
      threads = workers + 1;
    }
    return threads;
  }

  void run(int64_t count, int64_t threads, void (*function)(void*, int64_t), void* argument) {
    {
      std::lock_guard<std::mutex> held(lock);
      threads = recruit(threads);
      body = function, context = argument, chunks = count;
      next = 0;
      wanted = running = threads - 1;
      ++generation;
    }
    wake.notify_all();
    drain();
    std::unique_lock<std::mutex> held(lock);
    done.wait(held, [&] { return running == 0; });
  }
};

Pool* pool = new Pool;  // never destroyed: workers may outlive main

void after_fork() { pool = new Pool; }  // the child has no workers and must not touch locked mutexes

const int registered = pthread_atfork(nullptr, nullptr, after_fork);

struct Chunks {
  void (*body)(void*, int64_t);
  void* context;
  int64_t count;
  std::atomic<int64_t> next{0};
};

void drain_chunks(void* raw, int64_t, int64_t) {
  Chunks& chunks = *static_cast<Chunks*>(raw);
  for (int64_t chunk = chunks.next++; chunk < chunks.count; chunk = chunks.next++) chunks.body(chunks.context, chunk);
}

}  // namespace

void parallel_for(int64_t chunks, int64_t threads, void (*body)(void*, int64_t), void* context) {
  if (threads > chunks) threads = chunks;
  // A busy pool means a caller on another thread: run here rather than wait behind it.
  if (threads > 1 && pool->entry.try_lock()) {
    std::lock_guard<std::mutex> held(pool->entry, std::adopt_lock);
    Chunks all = {body, context, chunks};
    if (!on_openmp(threads, drain_chunks, &all)) pool->run(chunks, threads, body, context);
    return;
  }
  for (int64_t chunk = 0; chunk < chunks; ++chunk) body(context, chunk);
}

void parallel_region(int64_t threads, void (*body)(void*, int64_t, int64_t), void* context) {
  struct Region {
    void (*body)(void*, int64_t, int64_t);
    void* context;
    int64_t size;
  } region{body, context, 1};
  if (threads > 1 && pool->entry.try_lock()) {
    std::lock_guard<std::mutex> entered(pool->entry, std::adopt_lock);
    if (on_openmp(threads, body, context)) return;
    {
      std::lock_guard<std::mutex> held(pool->lock);
      region.size = pool->recruit(threads);
    }
    // as many chunks as threads, each of which returns only when all have begun: a thread takes exactly one
    const auto member = [](void* raw, int64_t index) {
      const Region& t = *static_cast<Region*>(raw);
      t.body(t.context, index, t.size);
    };
    pool->run(region.size, region.size, member, &region);
    return;
  }
  body(context, 0, 1);
}

}  // namespace dfq
