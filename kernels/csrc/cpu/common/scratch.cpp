#include "common/scratch.h"

#include <cstdlib>
#include <new>

namespace dfq {
namespace {

struct Slots {
  void* memory[SCRATCH_SLOTS] = {};
  int64_t size[SCRATCH_SLOTS] = {};

  ~Slots() {
    for (void* block : memory) std::free(block);
  }
};

}  // namespace

void* scratch(int slot, int64_t bytes) {
  thread_local Slots slots;
  if (slots.size[slot] < bytes || !slots.memory[slot]) {
    std::free(slots.memory[slot]);
    slots.size[slot] = 0;
    const int64_t wanted = (bytes + bytes / 4) / 4096 * 4096 + 4096;  // grows in steps, so that it soon stops growing
    slots.memory[slot] = std::aligned_alloc(64, size_t(wanted));
    if (!slots.memory[slot]) throw std::bad_alloc();
    slots.size[slot] = wanted;
  }
  return slots.memory[slot];
}

}  // namespace dfq
