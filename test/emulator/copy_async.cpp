// The queue of asynchronous copies of a thread.
#include "prims/copy_async.h"

namespace qformer::emulator {
namespace {

constexpr uint32_t kBytes = 16;

void deliver(PendingCopy& copy) {
  uint8_t* destination = machine.current->block->shared + copy.destination;
  if (copy.valid) {
    on_global_read(copy.source, kBytes, copy.site);
    memcpy(destination, copy.source, kBytes);
  } else {
    memset(destination, 0, kBytes);
  }
  copy.delivered = true;
}

void deliver_some() {
  std::vector<PendingCopy>& copies = machine.current->copies;
  if (machine.seed == 0 || copies.empty() || next_random() % 4 != 0) return;
  PendingCopy& copy = copies[next_random() % copies.size()];
  if (!copy.delivered) deliver(copy);
}

void retire(PendingCopy& copy) {
  if (!copy.delivered) deliver(copy);
  Fiber& me = *machine.current;
  Cell* cell = me.block->cells + copy.destination / 2;
  for (Cell* end = cell + kBytes / 2; cell != end; ++cell) {
    cell->write_time = machine.clock;
    cell->writer = me.thread;
  }
}

}  // namespace

void copy_async(const SharedPlace& destination, const void* source, bool valid, Site site) {
  Fiber& me = *machine.current;
  uint8_t* target = check_shared(destination, kBytes, "cp.async", site);
  if (valid) check_range(source, kBytes, "cp.async", site);
  const auto offset = static_cast<uint32_t>(destination.offset);
  on_shared_write(offset, kBytes, site);
  if (machine.count_banks) count_access(offset, kBytes, site);
  PendingCopy copy{offset, static_cast<const uint8_t*>(source), me.copy_group, valid, false, site};
  if (machine.arch < 80) {
    deliver(copy);
    return;
  }
  memset(target, 0xff, kBytes);
  Cell* cell = me.block->cells + offset / 2;
  for (Cell* end = cell + kBytes / 2; cell != end; ++cell) cell->write_time = kPendingTime;
  me.copies.push_back(copy);
  deliver_some();
}

void commit_copies() {
  ++machine.current->copy_group;
  deliver_some();
}

void wait_copies(uint32_t pending) {
  Fiber& me = *machine.current;
  if (pending != kAllCopies && pending >= me.copy_group) return;
  // Copies not committed carry the number of the group that is open.
  const uint32_t limit = pending == kAllCopies ? me.copy_group + 1 : me.copy_group - pending;
  size_t retired = 0;
  while (retired < me.copies.size() && me.copies[retired].group < limit) retire(me.copies[retired++]);
  me.copies.erase(me.copies.begin(), me.copies.begin() + static_cast<std::ptrdiff_t>(retired));
}

}  // namespace qformer::emulator
