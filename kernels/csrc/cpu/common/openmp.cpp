// Borrowing torch's threads. OpenMP's workers spin for milliseconds after a parallel region of torch; a second pool
// would compete with them for the same processors, and lose (measured: 1.8 times the time of a product right after a
// torch operation). So products run on that very pool, found by its address: the library itself needs no OpenMP.
#include "common/openmp.h"

#include <pthread.h>

#include <atomic>

#include "dfq_abi.h"

namespace dfq {
namespace {

using Start = void (*)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel(function, data, threads, flags)
using Number = int (*)();                                            // omp_get_num_threads, omp_get_thread_num

struct Functions {
  std::atomic<Start> start{nullptr};
  Number size = nullptr, index = nullptr;
} functions;

void after_fork() { functions.start = nullptr; }  // OpenMP's workers do not exist in the child, and it would wait

const int registered = pthread_atfork(nullptr, nullptr, after_fork);

struct Region {
  void (*body)(void*, int64_t, int64_t);
  void* context;
};

void member(void* raw) {
  const Region& region = *static_cast<Region*>(raw);
  region.body(region.context, functions.index(), functions.size());
}

}  // namespace

bool on_openmp(int64_t threads, void (*body)(void*, int64_t, int64_t), void* context) {
  const Start start = functions.start;
  if (!start) return false;
  Region region = {body, context};
  start(member, &region, unsigned(threads), 0);
  return true;
}

}  // namespace dfq

int dfq_use_openmp(const dfq_openmp* openmp) {
  using namespace dfq;
  functions.start = nullptr;
  if (!openmp) return DFQ_OK;
  if (!openmp->parallel || !openmp->num_threads || !openmp->thread_num) return DFQ_BAD_ARGUMENT;
  functions.size = reinterpret_cast<Number>(const_cast<void*>(openmp->num_threads));
  functions.index = reinterpret_cast<Number>(const_cast<void*>(openmp->thread_num));
  functions.start = reinterpret_cast<Start>(const_cast<void*>(openmp->parallel));
  return DFQ_OK;
}
