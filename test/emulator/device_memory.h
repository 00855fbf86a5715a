// Emulated device memory: one reserved range of addresses, so that a check is arithmetic on the address.
//
// Allocations start on 256-byte pages with an unused page between them; a table maps a page to its allocation, and
// cells (shadow.h) lie at a fixed stride. Freed ranges are kept out of use as long as possible. New memory is all ones:
// NaN in every float type, -1 in integers.
#pragma once

#include <cstring>

#include "machine.h"

namespace qformer::emulator {

struct Allocation {
  uintptr_t begin, end;
  uint64_t bytes;  // as allocated; [begin, end) may be less (lease_allocation)
  uint64_t serial;
  bool live;
};

struct DeviceMemory {
  static constexpr uint64_t kBytes = uint64_t{8} << 30;
  static constexpr uint64_t kPage = 256;

  uintptr_t base = 0;
  Cell* cells = nullptr;                    // one per two bytes
  uint32_t* pages = nullptr;                // page -> index into allocations, 0: none
  std::vector<Allocation> allocations{{}};  // never shrinks: reports name freed ones
};

extern DeviceMemory memory;

// Reserves the range at the first call.
void initialize_memory();

// Returns nullptr when memory is exhausted.
void* device_allocate(uint64_t bytes);

// False when `pointer` is not the beginning of a live allocation.
bool device_free(void* pointer);

// Narrows or widens what is in use of an allocation (never past what was allocated) and makes it uninitialised.
void lease_allocation(void* pointer, uint64_t bytes);

uint64_t device_bytes_in_use();

// An empty string when [p, p + bytes) lies in one live allocation, else what is wrong.
std::string describe_bad_range(const void* p, uint64_t bytes);

// Host-side writes and reads (memcpy, memset) of a valid range.
void mark_written_by_host(const void* p, uint64_t bytes);
// Offset of the first byte that was never written, or -1.
int64_t first_uninitialized(const void* p, uint64_t bytes);
// A copy between device ranges carries over which bytes are initialised.
void copy_initialization(const void* to, const void* from, uint64_t bytes);

// Times are renumbered when the clock comes near its end.
void renumber_cells();

inline Cell* cell_of(const void* p) { return memory.cells + ((reinterpret_cast<uintptr_t>(p) - memory.base) >> 1); }

[[noreturn]] void global_range_fault(const void* p, uint32_t bytes, const char* what, Site site);

// Bounds and alignment of an access by the current thread.
inline void check_range(const void* p, uint32_t bytes, const char* what, Site site) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(p) - memory.base;
  if (__builtin_expect(offset >= DeviceMemory::kBytes, 0)) global_range_fault(p, bytes, what, site);
  const Allocation& a = memory.allocations[memory.pages[offset / DeviceMemory::kPage]];
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  if (__builtin_expect(address < a.begin || address + bytes > a.end || (address & (bytes - 1)), 0))
    global_range_fault(p, bytes, what, site);
}

}  // namespace qformer::emulator
