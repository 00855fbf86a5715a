// Allocation in the emulated device's address range and the host's side of its shadow.
#include "device_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <new>

namespace qformer::emulator {

DeviceMemory memory;

namespace {

std::map<uintptr_t, uint64_t> free_ranges;  // begin -> bytes
uintptr_t next_fit = 0;                     // search goes on where the last allocation ended, so reuse comes late
uint64_t bytes_in_use = 0;

void* reserve(uint64_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(p, bytes, MADV_HUGEPAGE);  // the shadow is eight times the memory: small pages would cost TLB misses
#endif
  return p;
}

uint64_t footprint(uint64_t bytes) {
  return (bytes + DeviceMemory::kPage - 1) / DeviceMemory::kPage * DeviceMemory::kPage + DeviceMemory::kPage;
}

// The system's pages wholly inside a freed range go back to it and read as zero; the rest is cleared by hand.
void discard(void* begin, uint64_t bytes) {
  constexpr uintptr_t kSystemPage = 16384;
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin), last = first + bytes;
  const uintptr_t inner_first = (first + kSystemPage - 1) / kSystemPage * kSystemPage;
  const uintptr_t inner_last = last / kSystemPage * kSystemPage;
  if (inner_first >= inner_last) {
    memset(begin, 0, bytes);
    return;
  }
  memset(begin, 0, inner_first - first);
#ifdef __linux__
  madvise(reinterpret_cast<void*>(inner_first), inner_last - inner_first, MADV_DONTNEED);
#else
  memset(reinterpret_cast<void*>(inner_first), 0, inner_last - inner_first);
#endif
  memset(reinterpret_cast<void*>(inner_last), 0, last - inner_last);
}

void set_pages(uintptr_t begin, uint64_t bytes, uint32_t value) {
  const uint64_t first = (begin - memory.base) / DeviceMemory::kPage;
  for (uint64_t i = 0; i < bytes / DeviceMemory::kPage; ++i) memory.pages[first + i] = value;
}

std::map<uintptr_t, uint64_t>::iterator find_free(uint64_t bytes) {
  for (auto range = free_ranges.lower_bound(next_fit); range != free_ranges.end(); ++range)
    if (range->second >= bytes) return range;
  for (auto range = free_ranges.begin(); range != free_ranges.end(); ++range)
    if (range->second >= bytes) return range;
  return free_ranges.end();
}

void add_free(uintptr_t begin, uint64_t bytes) {
  auto after = free_ranges.lower_bound(begin);
  if (after != free_ranges.end() && begin + bytes == after->first) {
    bytes += after->second;
    after = free_ranges.erase(after);
  }
  if (after != free_ranges.begin()) {
    auto before = std::prev(after);
    if (before->first + before->second == begin) {
      before->second += bytes;
      return;
    }
  }
  free_ranges[begin] = bytes;
}

}  // namespace

void initialize_memory() {
  if (memory.base) return;
  constexpr uint64_t kFirst = 1 << 20;  // small offsets from a null pointer never look like device memory
  if constexpr (kChecked) memory.cells = static_cast<Cell*>(reserve(DeviceMemory::kBytes / 2 * sizeof(Cell)));
  memory.pages = static_cast<uint32_t*>(reserve(DeviceMemory::kBytes / DeviceMemory::kPage * sizeof(uint32_t)));
  memory.base = reinterpret_cast<uintptr_t>(reserve(DeviceMemory::kBytes));
  free_ranges[memory.base + kFirst] = DeviceMemory::kBytes - 2 * kFirst;
}

void* device_allocate(uint64_t bytes) {
  initialize_memory();
  const uint64_t total = footprint(bytes);
  const auto range = total < bytes ? free_ranges.end() : find_free(total);
  if (range == free_ranges.end()) return nullptr;
  const auto [begin, available] = *range;
  free_ranges.erase(range);
  if (available > total) free_ranges[begin + total] = available - total;
  next_fit = begin + total;
  memory.allocations.push_back({begin, begin + bytes, bytes, memory.allocations.size(), true});
  set_pages(begin, total, static_cast<uint32_t>(memory.allocations.size() - 1));
  memset(reinterpret_cast<void*>(begin), 0xff, bytes);
  bytes_in_use += total;
  return reinterpret_cast<void*>(begin);
}

bool device_free(void* pointer) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(pointer) - memory.base;
  if (!memory.base || offset >= DeviceMemory::kBytes) return false;
  Allocation& a = memory.allocations[memory.pages[offset / DeviceMemory::kPage]];
  if (!a.live || a.begin != reinterpret_cast<uintptr_t>(pointer)) return false;
  const uint64_t total = footprint(a.bytes);
  if constexpr (kChecked) discard(cell_of(pointer), total / 2 * sizeof(Cell));
  if constexpr (kChecked) discard(pointer, total);
  a.live = false;
  a.end = a.begin;  // no access is inside it any more; the page table still names it in reports
  add_free(a.begin, total);
  bytes_in_use -= total;
  return true;
}

void lease_allocation(void* pointer, uint64_t bytes) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(pointer) - memory.base;
  if (!memory.base || offset >= DeviceMemory::kBytes) return;
  Allocation& a = memory.allocations[memory.pages[offset / DeviceMemory::kPage]];
  if (!a.live || a.begin != reinterpret_cast<uintptr_t>(pointer)) return;
  a.end = a.begin + std::min(bytes, a.bytes);
  if constexpr (kChecked) discard(cell_of(pointer), (a.end - a.begin + 1) / 2 * sizeof(Cell));
  memset(pointer, 0xff, a.end - a.begin);
}

uint64_t device_bytes_in_use() { return bytes_in_use; }

std::string describe_bad_range(const void* p, uint64_t bytes) {
  char text[200];
  const uintptr_t address = reinterpret_cast<uintptr_t>(p), offset = address - memory.base;
  if (!p) return "a null pointer";
  if (!memory.base || offset >= DeviceMemory::kBytes) return "not device memory";
  const Allocation& a = memory.allocations[memory.pages[offset / DeviceMemory::kPage]];
  if (a.begin == 0) return "in no allocation";
  if (!a.live) {
    snprintf(text, sizeof(text), "in freed memory (byte %lld of allocation %llu)",
             static_cast<long long>(address - a.begin), static_cast<unsigned long long>(a.serial));
    return text;
  }
  if (address >= a.begin && address + bytes <= a.end) return "";
  snprintf(text, sizeof(text), "at byte %lld of an allocation of %llu bytes", static_cast<long long>(address - a.begin),
           static_cast<unsigned long long>(a.end - a.begin));
  return text;
}

void mark_written_by_host(const void* p, uint64_t bytes) {
  if (!kChecked || bytes == 0) return;
  Cell* end = cell_of(static_cast<const uint8_t*>(p) + bytes - 1) + 1;
  for (Cell* cell = cell_of(p); cell != end; ++cell) *cell = {1, 0, 0, 0};
}

int64_t first_uninitialized(const void* p, uint64_t bytes) {
  if (!kChecked || bytes == 0) return -1;
  const Cell* begin = cell_of(p);
  const Cell* end = cell_of(static_cast<const uint8_t*>(p) + bytes - 1) + 1;
  for (const Cell* cell = begin; cell != end; ++cell)
    if (cell->write_time == 0) return (cell - begin) * 2;
  return -1;
}

void copy_initialization(const void* to, const void* from, uint64_t bytes) {
  if (!kChecked || bytes == 0) return;
  const Cell* source = cell_of(from);
  Cell* end = cell_of(static_cast<const uint8_t*>(to) + bytes - 1) + 1;
  for (Cell* cell = cell_of(to); cell != end; ++cell, ++source) *cell = {source->write_time ? 1u : 0u, 0, 0, 0};
}

void renumber_cells() {
  for (const Allocation& a : memory.allocations) {
    if (!a.live || a.begin == a.end) continue;
    Cell* end = cell_of(reinterpret_cast<void*>(a.end - 1)) + 1;
    for (Cell* cell = cell_of(reinterpret_cast<void*>(a.begin)); cell != end; ++cell)
      *cell = {cell->write_time ? 1u : 0u, 0, 0, 0};
  }
}

void global_range_fault(const void* p, uint32_t bytes, const char* what, Site site) {
  // kernel_fault leaves this frame for good: nothing in it may own memory then.
  char bad[200];
  {
    const std::string text = memory.base ? describe_bad_range(p, bytes) : "not device memory";
    snprintf(bad, sizeof(bad), "%s", text.c_str());
  }
  if (bad[0] == 0)
    kernel_fault(FaultKind::kAlignment, site, "global %s of %u bytes at %p, which is not a multiple of %u", what, bytes,
                 p, bytes);
  kernel_fault(FaultKind::kBounds, site, "global %s of %u bytes %s", what, bytes, bad);
}

}  // namespace qformer::emulator
