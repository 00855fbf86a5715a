// The uncommon outcomes of a shadow check: accesses of different threads in one interval, judged and reported.
#include "shadow.h"

#include "memory_order.h"

namespace qformer::emulator {
namespace {

bool same_warp_ordered(uint32_t thread, uint32_t time) {
  const Fiber& fiber = *machine.current;
  return thread / 32 == fiber.thread / 32 && time < fiber.warp->since;
}

[[noreturn]] void shared_race(const char* mine, const char* theirs, uint32_t thread, Site site) {
  kernel_fault(FaultKind::kRace, site, "shared memory race: %s here, %s by thread %u, and no barrier in between", mine,
               theirs, thread);
}

void check_pending(const Cell& cell, const char* what, Site site) {
  if (cell.write_time == kPendingTime)
    kernel_fault(FaultKind::kPendingCopy, site,
                 "shared memory %s while the cp.async of thread %u into it has not been waited for", what, cell.writer);
}

bool shared_write_ordered(const Cell& cell) {
  const Fiber& fiber = *machine.current;
  if (cell.write_time < fiber.block->since || cell.writer == fiber.thread) return true;
  if (cell.writer == kAtomicWriter) return cell.write_time < fiber.warp->since;
  return same_warp_ordered(cell.writer, cell.write_time);
}

// Whether the remembered readers are ordered before the current thread's write; `thread`: one of them.
bool shared_reads_ordered(const Cell& cell, uint32_t* thread) {
  const Fiber& fiber = *machine.current;
  *thread = cell.reader & ~kReaderKind;
  if (cell.read_time < fiber.block->since || cell.reader == fiber.thread) return true;
  const uint32_t kind = cell.reader & kReaderKind;
  if (kind == 0) return same_warp_ordered(cell.reader, cell.read_time);
  if (kind != kManyLanes) return false;
  *thread *= 32;
  return same_warp_ordered(*thread, cell.read_time);
}

bool global_reads_ordered(const Cell& cell, uint32_t* thread) {
  const Fiber& fiber = *machine.current;
  *thread = cell.reader & ~kReaderKind;
  if (cell.read_time < machine.launch_time || cell.reader == fiber.grid_id) return true;
  const uint32_t kind = cell.reader & kReaderKind;
  if (kind == 0) return is_ordered(cell.reader, cell.read_time);
  // Of many blocks nothing is remembered: whoever has synchronised with any block is believed.
  if (kind == kManyBlocks) {
    *thread = 0;
    const bool knows =
        (fiber.order && !fiber.order->known.empty()) || (fiber.block->known && !fiber.block->known->known.empty());
    return knows;
  }
  if (kind == kManyLanes) {
    *thread *= 32;
    for (uint32_t lane = 0; lane < 32; ++lane)
      if (*thread + lane != fiber.grid_id && !is_ordered(*thread + lane, cell.read_time)) return false;
    return true;
  }
  const uint32_t block = *thread;
  *thread = block * machine.padded_threads;
  if (block == fiber.block->id) return cell.read_time < fiber.block->since;
  return is_ordered(*thread, cell.read_time);
}

[[noreturn]] void global_race(const char* mine, const char* theirs, uint32_t grid_id, Site site) {
  const uint32_t block = grid_id / machine.padded_threads, thread = grid_id % machine.padded_threads;
  const bool own = block == machine.current->block->id;
  kernel_fault(FaultKind::kRace, site, "global memory race: %s here, %s by thread %u of %s %u, and %s in between", mine,
               theirs, thread, own ? "the same block" : "block", block,
               own ? "no barrier" : "no fence and atomic (or release and acquire)");
}

}  // namespace

uint32_t merged_shared_reader(const Cell& cell) {
  const Fiber& fiber = *machine.current;
  const uint32_t kind = cell.reader & kReaderKind, id = cell.reader & ~kReaderKind;
  const uint32_t warp = kind == 0 ? id / 32 : id;
  if (kind == kManyWarps || warp != fiber.thread / 32) return kManyWarps;
  if (cell.read_time < fiber.warp->since) return fiber.thread;
  return kManyLanes | warp;
}

uint32_t merged_global_reader(const Cell& cell) {
  const Fiber& fiber = *machine.current;
  const Block& block = *fiber.block;
  const uint32_t kind = cell.reader & kReaderKind, id = cell.reader & ~kReaderKind;
  const uint32_t first = kind == kManyLanes ? id * 32 : kind == kManyWarps ? id * machine.padded_threads : id;
  // Without a division: whether `first` is a thread of this block.
  if (kind == kManyBlocks || first - block.id * machine.padded_threads >= machine.padded_threads) return kManyBlocks;
  if (cell.read_time < block.since) return fiber.grid_id;
  if (kind == kManyWarps || first / 32 != fiber.grid_id / 32) return kManyWarps | block.id;
  if (cell.read_time < fiber.warp->since) return fiber.grid_id;
  return kManyLanes | first / 32;
}

void shared_read_conflict(const Cell& cell, Site site) {
  check_pending(cell, "read", site);
  if (shared_write_ordered(cell)) return;
  if (cell.writer == kAtomicWriter)
    kernel_fault(FaultKind::kRace, site, "shared memory race: read here, atomic by others, and no barrier in between");
  shared_race("read", "written", cell.writer, site);
}

void shared_write_conflict(const Cell& cell, Site site) {
  check_pending(cell, "written", site);
  if (!shared_write_ordered(cell)) {
    if (cell.writer == kAtomicWriter)
      kernel_fault(FaultKind::kRace, site,
                   "shared memory race: written here, atomic by others, and no barrier in between");
    shared_race("written", "written", cell.writer, site);
  }
  uint32_t reader = 0;
  if (!shared_reads_ordered(cell, &reader)) shared_race("written", "read", reader, site);
}

void global_read_conflict(const Cell& cell, const void*, Site site) {
  if (cell.writer == kAtomicWriter || is_ordered(cell.writer, cell.write_time)) return;
  global_race("read", "written", cell.writer, site);
}

void global_write_conflict(const Cell& cell, const void*, Site site) {
  if (cell.write_time >= machine.launch_time && cell.writer != kAtomicWriter &&
      !is_ordered(cell.writer, cell.write_time))
    global_race("written", "written", cell.writer, site);
  uint32_t reader = 0;
  if (!global_reads_ordered(cell, &reader)) global_race("written", "read", reader, site);
}

void on_global_atomic(const void* p, uint32_t bytes, Site site) {
  Cell* cell = cell_of(p);
  Cell* const end = cell + (bytes + 1) / 2;
  for (; cell != end; ++cell) {
    if (cell->write_time == 0) global_uninitialized(p, site);
    if (cell->write_time >= machine.launch_time && cell->writer != kAtomicWriter &&
        !is_ordered(cell->writer, cell->write_time))
      global_race("atomic", "written", cell->writer, site);
    cell->write_time = machine.clock;
    cell->writer = kAtomicWriter;
  }
}

void on_shared_atomic(uint32_t offset, uint32_t bytes, Site site) {
  Block& block = *machine.current->block;
  Cell* const end = block.cells + (offset + bytes + 1) / 2;
  for (Cell* cell = block.cells + offset / 2; cell != end; ++cell) {
    if (cell->write_time < block.start) shared_uninitialized(offset, site);
    check_pending(*cell, "atomic", site);
    if (cell->writer != kAtomicWriter && !shared_write_ordered(*cell))
      shared_race("atomic", "written", cell->writer, site);
    uint32_t reader = 0;
    if (!shared_reads_ordered(*cell, &reader)) shared_race("atomic", "read", reader, site);
    cell->write_time = machine.clock;
    cell->writer = kAtomicWriter;
  }
}

void shared_uninitialized(uint32_t offset, Site site) {
  kernel_fault(FaultKind::kUninitialised, site, "shared memory read that nobody has written (byte %u of the block's)",
               offset);
}

void global_uninitialized(const void* p, Site site) {
  const Allocation& a =
      memory.allocations[memory.pages[(reinterpret_cast<uintptr_t>(p) - memory.base) / DeviceMemory::kPage]];
  kernel_fault(FaultKind::kUninitialised, site, "global memory read that nobody has written (byte %llu of %llu)",
               static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(p) - a.begin),
               static_cast<unsigned long long>(a.end - a.begin));
}

}  // namespace qformer::emulator
