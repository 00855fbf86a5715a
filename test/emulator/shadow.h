// The race detector's rules, on cells of two bytes, for shared memory and for global memory.
//
// An access is ordered before a later one of another thread when
//   - a __syncthreads of their block completed in between, or
//   - they are lanes of one warp and a __syncwarp completed in between (shuffles, votes and mma order nothing), or
//   - (global memory) the writer fenced or released, the reader saw it by an atomic or acquire, and fenced
//     (memory_order.h).
// Two unordered accesses of one cell, one of them a write, are a race whether or not this run's values show it. Of
// several readers a cell remembers one thread, or that there were several in a warp, in a block, or in many blocks.
// Accesses of one byte are checked for bounds and initialisation only: two bytes share a cell.
#pragma once

#include "device_memory.h"
#include "machine.h"

namespace qformer::emulator {

constexpr uint32_t kPendingTime = 0xffffffffu;  // write_time of the target of a cp.async in flight
constexpr uint32_t kAtomicWriter = 0x3fffffffu;
// Codes of `reader`; thread ids lie below 2^30.
constexpr uint32_t kManyLanes = 0x40000000u;  // | warp
constexpr uint32_t kManyWarps = 0x80000000u;  // | block
constexpr uint32_t kManyBlocks = 0xc0000000u;
constexpr uint32_t kReaderKind = 0xc0000000u;

void shared_read_conflict(const Cell& cell, Site site);
void shared_write_conflict(const Cell& cell, Site site);
void global_read_conflict(const Cell& cell, const void* p, Site site);
void global_write_conflict(const Cell& cell, const void* p, Site site);
[[noreturn]] void shared_uninitialized(uint32_t offset, Site site);
[[noreturn]] void global_uninitialized(const void* p, Site site);

// The code for "`cell.reader` and the current thread", who both read since the last barrier.
uint32_t merged_shared_reader(const Cell& cell);
uint32_t merged_global_reader(const Cell& cell);

// Cells of an aligned access, a constant where the size is one.
constexpr uint32_t cells_of(uint32_t bytes) { return (bytes + 1) / 2; }

// `offset`: byte in the block's shared memory; bounds are checked before.
inline void on_shared_read(uint32_t offset, uint32_t bytes, Site site) {
  const Fiber& fiber = *machine.current;
  const Block& block = *fiber.block;
  const uint32_t me = fiber.thread, since = block.since, now = machine.clock;
  Cell* cell = block.cells + offset / 2;
  for (Cell* const end = cell + cells_of(bytes); cell != end; ++cell) {
    if (__builtin_expect(cell->write_time < block.start, 0)) shared_uninitialized(offset, site);
    if (cell->write_time >= since && cell->writer != me && bytes > 1) shared_read_conflict(*cell, site);
    if (cell->read_time < since)
      cell->reader = me;
    else if (cell->reader != me && cell->reader != kManyWarps)  // one that many warps read stays so
      cell->reader = merged_shared_reader(*cell);
    cell->read_time = now;
  }
}

inline void on_shared_write(uint32_t offset, uint32_t bytes, Site site) {
  const Fiber& fiber = *machine.current;
  const Block& block = *fiber.block;
  const uint32_t me = fiber.thread, since = block.since, now = machine.clock;
  Cell* cell = block.cells + offset / 2;
  for (Cell* const end = cell + cells_of(bytes); cell != end; ++cell) {
    if (((cell->write_time >= since && cell->writer != me) || (cell->read_time >= since && cell->reader != me)) &&
        bytes > 1)
      shared_write_conflict(*cell, site);
    cell->write_time = now;
    cell->writer = me;
  }
}

inline void on_global_read(const void* p, uint32_t bytes, Site site) {
  const Fiber& fiber = *machine.current;
  const uint32_t me = fiber.grid_id, launch = machine.launch_time, now = machine.clock;
  Cell* cell = cell_of(p);
  for (Cell* const end = cell + cells_of(bytes); cell != end; ++cell) {
    if (__builtin_expect(cell->write_time == 0, 0)) global_uninitialized(p, site);
    if (cell->write_time >= launch && cell->writer != me && bytes > 1) global_read_conflict(*cell, p, site);
    if (cell->read_time < launch)
      cell->reader = me;
    else if (cell->reader != me && cell->reader != kManyBlocks)
      cell->reader = merged_global_reader(*cell);
    cell->read_time = now;
  }
}

inline void on_global_write(const void* p, uint32_t bytes, Site site) {
  const Fiber& fiber = *machine.current;
  const uint32_t me = fiber.grid_id, launch = machine.launch_time, now = machine.clock;
  Cell* cell = cell_of(p);
  for (Cell* const end = cell + cells_of(bytes); cell != end; ++cell) {
    if (((cell->write_time >= launch && cell->writer != me) || (cell->read_time >= launch && cell->reader != me)) &&
        bytes > 1)
      global_write_conflict(*cell, p, site);
    cell->write_time = now;
    cell->writer = me;
  }
}

// An atomic read-modify-write: unordered atomics do not race with each other, but with plain accesses.
void on_global_atomic(const void* p, uint32_t bytes, Site site);
void on_shared_atomic(uint32_t offset, uint32_t bytes, Site site);

}  // namespace qformer::emulator
