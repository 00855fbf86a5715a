// Order between blocks: what a thread knows of the writes of others through fences, releases, atomics and acquires.
//
// A fence covers the thread's own earlier accesses and, cumulatively, what was ordered before it: its block up to the
// last
// __syncthreads, its warp up to the last __syncwarp, and whatever it had learned itself. An atomic or release publishes
// what the last fence covered; an atomic or acquire that reads the place learns it (an atomic only at its next fence).
// PTX ISA, "Memory Consistency Model": release and acquire patterns.
#pragma once

#include <unordered_map>

#include "machine.h"

namespace qformer::emulator {

// Bounds in time: accesses before them are known to be ordered.
struct Knowledge {
  std::unordered_map<uint32_t, uint32_t> blocks, threads;
  bool empty() const { return blocks.empty() && threads.empty(); }
  void merge(const Knowledge& other);
};

struct ThreadOrder {
  Knowledge known, seen, published;
};

// Is the access of thread `grid_id` at `time` ordered before the current thread's next one?
bool is_ordered(uint32_t grid_id, uint32_t time);

void fence();
void on_atomic(const void* p);
void on_acquire(const void* p);
void on_release(const void* p);

// At a __syncthreads all threads of the block learn what any of them knew.
void share_knowledge(Block& block);
void forget_knowledge();

}  // namespace qformer::emulator
